#!/usr/bin/env bash
# Runs the tests on every Python named (all that the package may run on by default) that is at hand: on PATH, or among
# pyenv's. Each gets a virtual environment of its own, .venv-<version>, and a line in the summary.
#     bash tests/package/pythons.sh 3.12 3.13          PYTEST_ARGS="-x tests/norms" chooses tests
set -uo pipefail
cd "$(dirname "$0")/../.."

find_python() {
    local candidate
    for candidate in "$(command -v "python$1" || true)" "$HOME"/.pyenv/versions/"$1".*/bin/python /usr/bin/python"$1"; do
        # asked, not trusted: a shim of pyenv's may stand for a version that is not chosen
        if [ -x "$candidate" ] && "$candidate" -c "import sys; assert '%d.%d' % sys.version_info[:2] == '$1'" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

[ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13 3.14
failed=0
summary=""
for version in "$@"; do
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        summary+="python $version: not at hand"$'\n'
        continue
    fi
    log=".venv-$version.log"
    # pytest's last line, or the last of all where it did not get so far
    said() { grep -E "[0-9]+ (passed|failed|error)" "$log" | tail -n 1 | grep . || tail -n 1 "$log"; }
    if make --no-print-directory test PYTHON="$python" VENV=".venv-$version" PYTEST_ARGS="${PYTEST_ARGS:-}" >"$log" 2>&1; then
        summary+="python $version: passed, $(said)"$'\n'
    else
        failed=1
        summary+="python $version: FAILED, $(said) (see $log)"$'\n'
    fi
done
printf '%s' "$summary"
exit $failed
