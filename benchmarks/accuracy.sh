#!/usr/bin/env bash
# Trains as of a time, answers the benchmark's queries from then on, and scores them: benchmarks/accuracy.sh youtube | weibo
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=${M3TR_TEST_DATA:-../shared/data}
tools=$data/../benchmark
case ${1:-youtube} in
    youtube) set=youtube_trending as_of=2026-06-01 cut=() metric=views ;;
    weibo) set=weibo_ced as_of=2013-06-01 cut=(--ages 1 6 --horizons 24 72) metric=total ;;
    *) echo "usage: $0 [youtube|weibo]" >&2; exit 2 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bin=.venv/bin
"$bin"/python "$tools/make_queries.py" "$data/$set" --metric $metric ${cut[@]+"${cut[@]}"} --published-from $as_of \
    --out "$work/queries.parquet" >/dev/null
time "$bin"/m3tr-build train "$data/$set" --as-of $as_of --metric $metric --out "$work/bundle"
time "$bin"/m3tr-build forecast "$work/bundle" "$data/$set" "$work/queries.parquet" --out "$work/forecasts.parquet"
"$bin"/python "$tools/score.py" "$work/queries.answers.parquet" "$work/forecasts.parquet" --name m3tr
