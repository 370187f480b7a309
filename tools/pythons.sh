#!/bin/sh
# Finds the CPython interpreters of this machine that this project supports.
#
#   pythons.sh             their versions, one a line, oldest first:        3.11
#   pythons.sh VERSION     the path of one of them (the first that is found)
#   pythons.sh bootstrap   the path of one that can make a virtual environment with pip in it
#
# They are looked for in PATH, among pyenv's and in /usr/bin. Each candidate is run, because a name in PATH
# proves nothing: pyenv's shims fail for versions that are not selected.
# Set PYTHON to a path to use that interpreter and no other.

supported="3.11 3.12 3.13 3.14"

probe='
import sys, sysconfig, sqlite3, ssl, venv
if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(1)
try:
    import ensurepip
    can = "bootstrap"
except ImportError:
    can = "run"
print("%d.%d" % sys.version_info[:2], can, getattr(sys, "_base_executable", "") or sys.executable)
'

candidates() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON"
        return
    fi
    names="$(printf 'python%s ' $supported) python3 python"
    for name in $names; do
        command -v "$name"
    done
    for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python; do
        if [ -x "$path" ]; then echo "$path"; fi
    done
    for name in $names; do
        if [ -x "/usr/bin/$name" ]; then echo "/usr/bin/$name"; fi
    done
}

# Lines of: version, what it can do, path.
working() {
    candidates | awk '!seen[$0]++' | while IFS= read -r path; do
        line=$("$path" -I -c "$probe" 2>/dev/null </dev/null) || continue
        for version in $supported; do
            case $line in "$version "*) echo "$line" ;; esac
        done
    done
}

case ${1:-} in
    "") working | cut -d ' ' -f 1 | sort -u -t . -k 2n ;;
    bootstrap) working | grep -m 1 '^[^ ]* bootstrap ' | cut -d ' ' -f 3- ;;
    *) working | grep -m 1 "^$1 " | cut -d ' ' -f 3- ;;
esac
