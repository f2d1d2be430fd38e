"""The groups of settings together make up ``Settings``."""

from __future__ import annotations

from pathlib import Path

import service.settings as groups
from service.settings import RecordSettings, Settings
from service.settings.group import SettingsGroup

GROUPS = [
    group
    for group in vars(groups).values()
    if isinstance(group, type) and issubclass(group, SettingsGroup) and group is not Settings
]


def test_settings_has_the_fields_of_all_groups_and_no_others() -> None:
    names = [name for group in GROUPS for name in group.model_fields]
    assert sorted(names) == sorted(Settings.model_fields), "each setting is in one group"


def test_no_validator_of_a_group_replaces_another() -> None:
    """Validators of the same name in two groups would leave only one of them."""
    kept = Settings.__pydantic_decorators__
    for kind in ("field_validators", "model_validators"):
        names = [name for group in GROUPS for name in getattr(group.__pydantic_decorators__, kind)]
        assert len(set(names)) == len(names) and set(names) <= set(getattr(kept, kind))


def test_lists_are_written_as_text() -> None:
    settings = Settings(bundle=Path("b"), label_horizons_s="1, 3600", allowed_hosts="a.example b.example")  # type: ignore[arg-type]
    assert settings.label_horizons_s == (1, 3600) and settings.allowed_hosts == ("a.example", "b.example")


def test_a_group_stands_alone_with_its_defaults() -> None:
    assert RecordSettings.model_validate({}).dedup_ttl_s == 48 * 3600


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
