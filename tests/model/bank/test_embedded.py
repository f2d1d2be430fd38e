"""What only the embedded bank guarantees: one process at a time, no loss in crashes, graphs, threads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.bank import BankVideo, EmbeddedBank, embedded_engine, embedded_folder
from model.bank.tombstone import tombstone
from model.errors import BankError
from tests.copies import copy_tree
from tests.model.bank.bank_cases import (
    DC,
    DT,
    T0,
    cosine,
    facts,
    generation,
    ids,
    one,
    random_queries,
    random_videos,
    vec,
    video,
)

pytestmark = pytest.mark.slow


def run(code: str, *args: object, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Run Python code in another process, with ``bank_cases`` as ``t``."""
    head = (
        "import sys; sys.path.insert(0, sys.argv[1]); args = sys.argv[2:]\n"
        "from pathlib import Path; import tests.model.bank.bank_cases as t\n"
        "from model.bank import EmbeddedBank; from model.errors import BankError\n"
    )
    command = [*before, sys.executable, "-c", head + code, str(Path(__file__).parents[3]), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank"


def filled_bank(path: Path, videos: Sequence[BankVideo]) -> EmbeddedBank:
    with EmbeddedBank.build(path, DC, DT) as bank:
        bank.upsert(videos)
    return EmbeddedBank.open(path, DC, DT)


def test_videos_persist_and_can_be_added_after_reopening(path: Path) -> None:
    with EmbeddedBank.open(path, DC, DT, create=True) as bank:
        assert bank.counts() == {"videos": 0, "trajectories": 0}
        assert one(bank) == []
        bank.upsert([video("a")])
    with EmbeddedBank.open(path, DC, DT, create=True) as bank:
        before = facts(one(bank))
        assert [fact[0] for fact in before] == ["a"]
        bank.upsert([video("b", trajectories={5: (vec(DT, 1), T0)})])
    with EmbeddedBank.open(path, DC, DT) as bank:
        assert facts(one(bank, limit=1)) == before
        assert ids(one(bank, age_bucket=5, content=None)) == ["b"]
        assert [past.video_id for past in bank.creator(["ann"])["ann"]] == ["a", "b"]


def test_one_process_at_a_time_opens_a_bank(path: Path) -> None:
    bank = filled_bank(path, [video("a")])
    with pytest.raises(BankError, match="already open"):
        EmbeddedBank.open(path, DC, DT)
    code = """
try: EmbeddedBank.open(Path(args[0]), t.DC, t.DT)
except BankError as error: print(error)
"""
    out, err = run(code, path).communicate()
    assert "already open" in out, err
    with pytest.raises(BankError, match="already open"), EmbeddedBank.build(path, DC, DT):
        pytest.fail("a bank that is open must not be replaced")
    assert ids(one(bank)) == ["a"]
    bank.close()
    bank.close()
    with pytest.raises(BankError, match="closed"):
        one(bank)


def test_a_bank_on_a_read_only_file_system_is_copied(path: Path) -> None:
    """Any number of processes can open it, each has all of it, and the copies are removed."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a mount namespace")
    filled_bank(path, [video("a"), video("b")]).close()
    code = (
        "import subprocess; path = Path(args[0])\n"
        "subprocess.run(['mount', '-o', 'bind', path, path], check=True)\n"
        "subprocess.run(['mount', '-o', 'remount,bind,ro', path], check=True)\n"
        "with EmbeddedBank.open(path, t.DC, t.DT) as bank, EmbeddedBank.open(path, t.DC, t.DT) as other:\n"
        "    assert len({path, bank.path, other.path}) == 3 and other.counts()['videos'] == 2\n"
        "    bank.remove(['a'])\n"
        "    assert bank.counts()['videos'] == 1\n"
        "assert not bank.path.parent.exists()\n"
    )
    with run(code, path, before=["unshare", "-m"]) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_only_a_complete_bank_with_these_dimensions_is_opened(path: Path) -> None:
    with pytest.raises(BankError, match="no such folder"):
        EmbeddedBank.open(path, DC, DT)
    filled_bank(path, [video("a")]).close()
    with pytest.raises(BankError, match="content_dim"):
        EmbeddedBank.open(path, DC + 1, DT)
    with pytest.raises(BankError, match="trajectory_dim"):
        EmbeddedBank.open(path, DC, DT + 1)
    (path / "bank.json").unlink()
    for create in (False, True):
        with pytest.raises(BankError, match="did not finish"):
            EmbeddedBank.open(path, DC, DT, create=create)
    with pytest.raises(BankError, match="not replaced"), EmbeddedBank.build(path, DC, DT):
        pytest.fail("a folder that is no bank must not be replaced")


def test_damaged_files_are_a_bank_error(path: Path) -> None:
    filled_bank(path, [video("a")]).close()
    for file in (path / "shard").rglob("*.json"):
        file.write_bytes(b"\0")
    with pytest.raises(BankError, match=str(path)):
        EmbeddedBank.open(path, DC, DT)
    with pytest.raises(BankError, match=str(path)):  # and not "already open": the lock was released
        EmbeddedBank.open(path, DC, DT)


def test_a_kill_while_building_leaves_no_bank(path: Path) -> None:
    code = """
with EmbeddedBank.build(Path(args[0]), t.DC, t.DT) as bank:
    bank.upsert([t.video("half")]); print("half", flush=True); sys.stdin.read(); import time; time.sleep(60)
"""
    process = run(code, path)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.kill()
    process.communicate()
    with pytest.raises(BankError):
        EmbeddedBank.open(path, DC, DT)
    with filled_bank(path, [video("whole")]) as bank:
        assert ids(one(bank)) == ["whole"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["bank"]


def test_a_kill_while_writing_keeps_every_video_complete(path: Path) -> None:
    filled_bank(path, generation(0)).close()
    code = """
bank = EmbeddedBank.open(Path(args[0]), t.DC, t.DT)
for g in range(int(args[1]) + 1, 10**6):
    bank.upsert(t.generation(g)); print(g, flush=True)
"""
    g = 0
    for delay_s in (0.05, 0.11, 0.2):
        process = run(code, path, g)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(delay_s)
        process.kill()
        out, _ = process.communicate()
        acknowledged = max([g + 1, *map(int, out.split())])
        with EmbeddedBank.open(path, DC, DT) as bank:
            assert bank.counts() == {"videos": 400, "trajectories": 400}
            seen = 0
            for g in (acknowledged, acknowledged + 1):
                found = one(bank, content=vec(DC, g + 1, 100), age_bucket=g % 3, trajectory=None, limit=400)
                assert len(found) == 400
                for c in found:
                    if c.creator_id == f"g{g}":
                        seen += 1
                        assert c.content is not None and c.trajectory is not None
                        assert cosine(c.content, vec(DC, g + 1, 100)) > 1 - 1e-12
                        assert cosine(c.trajectory, vec(DT, g + 1, 100)) > 1 - 1e-12
                        assert c.curve.values.tolist() == [g]
                by_time = one(bank, trajectory=None, now_us=T0 + g, limit=400)
                assert sum(c.creator_id == f"g{g}" for c in by_time) == len(bank.creator([f"g{g}"])[f"g{g}"])
            assert seen == 400


@pytest.mark.parametrize("segments_know", [True, False])
def test_a_bank_killed_while_adding_a_bucket_opens(path: Path, segments_know: bool) -> None:
    filled_bank(path, [video("a", trajectories={1: (vec(DT, 1), T0)})]).close()
    config = path / "shard" / "edge_config.json"
    before = config.read_text()
    with EmbeddedBank.open(path, DC, DT) as bank:
        bank.upsert([video("b")])
    if segments_know:
        config.write_text(before)
        new = "1 2"
    else:
        names = json.loads(config.read_text())
        names["vectors"]["t3"] = names["vectors"]["t2"]
        config.write_text(json.dumps(names))
        new = "1 2 3"
    with pytest.raises(BankError, match="incompatible"):
        EmbeddedBank.open(path, DC, DT)
    (path / "new_space").write_text(new)
    with EmbeddedBank.open(path, DC, DT) as bank:
        bank.upsert([video("c", content=None, trajectories={3: (vec(DT, 1), T0), 2: (vec(DT, 1), T0)})])
    with EmbeddedBank.open(path, DC, DT) as bank:
        found = [ids(one(bank, content=None, age_bucket=bucket)) for bucket in (1, 2, 3)]
        assert found == [["a"], ["c", "b"], ["c"]]


def test_large_spaces_use_a_graph_with_high_recall(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_engine, "EXACT_UP_TO", 500)
    rng = np.random.default_rng(2)
    videos = random_videos(rng, 4000)
    queries = [replace(q, limit=16) for q in random_queries(rng, 100)]
    bank = filled_bank(path, videos)
    bank.optimize()
    graphs = bank.search(queries)
    monkeypatch.setattr(embedded_engine, "EXACT_UP_TO", 10**9)
    recalls = []
    for found, exact in zip(graphs, bank.search(queries), strict=True):
        if exact:
            recalls.append(len(set(ids(found)) & set(ids(exact))) / len(exact))
    assert bank._engine._engine.info().indexed_vectors_count > 3000
    assert np.mean(recalls) >= 0.98
    # A space that is added, and a video that is replaced, after the graphs were built.
    bank.upsert([video("new", trajectories={9: (vec(DT, 1), T0)}), replace(videos[0], content=vec(DC, 1))])
    assert ids(one(bank, age_bucket=9, content=None)) == ["new"]
    assert ids(one(bank, age_bucket=9, trajectory=None, limit=1)) == [videos[0].video_id]
    bank.close()


def test_threads_see_only_complete_writes(path: Path) -> None:
    bank = filled_bank(path, generation(0, 40))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            writing = pool.submit(lambda: [bank.upsert(generation(g, 40)) for g in range(1, 60)])  # type: ignore[func-returns-value]
            while not writing.done():
                seen = [pool.submit(one, bank, trajectory=None, limit=40) for _ in range(10)]
                for found in seen:
                    assert len(found.result()) == 40
                    assert len({(c.creator_id, c.published_us, *c.curve.values) for c in found.result()}) == 1
            writing.result()
    finally:
        sys.setswitchinterval(before)
    assert len(bank.creator(["g59"])["g59"]) == 40
    bank.close()


def _files_with(path: Path, text: bytes) -> list[str]:
    return [str(file) for file in path.rglob("*") if file.is_file() and text in file.read_bytes()]


@pytest.mark.parametrize("way", ["close", "late", "kill"])
def test_no_file_holds_a_removed_id(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, name = tmp_path / "bank", "kXq93-zL07pW-forgotten"
    with EmbeddedBank.build(path, DC, DT) as bank:
        bank.upsert([video("before"), video(name), video("after")])
    assert _files_with(path, name.encode())
    bank = EmbeddedBank.open(path, DC, DT)
    bank.upsert([video("later")])
    bank.forget([tombstone(name)])
    if way == "kill":
        # The files as a kill -9 leaves them, without a clean close.
        copy = copy_tree(path, tmp_path / "copy")
        bank.close()
        path = copy
    else:
        if way == "late":
            monkeypatch.setattr("model.bank.embedded.CLOSE_WAIT_S", 0.0)
        bank.close()
        if way == "close":
            assert not _files_with(path, name.encode())
    # Opening waits for the vacuum.
    with EmbeddedBank.open(path, DC, DT) as again:
        assert again.counts()["videos"] == 3
        assert name not in ids(one(again, limit=9))
        assert not _files_with(path, name.encode())


def test_opening_waits_for_a_lock_that_a_finished_vacuum_still_holds(path: Path) -> None:
    filled_bank(path, []).close()
    held = embedded_folder.Lock(path)
    # The folder needs no vacuum, as if a vacuum had finished but its process had not ended yet.
    threading.Timer(0.3, held.release).start()
    with EmbeddedBank.open(path, DC, DT) as again:
        assert again.counts()["videos"] == 0
