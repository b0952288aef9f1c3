#!/bin/sh
# Says which Python a lock is installed with: sh infra/find_python.sh cpu|gpu|light|any [CHOSEN]
# The one chosen, else the first of the right version in PATH, else uv's, which fetches it if need be. Where there is
# none, or this is no machine for the lock, one sentence says what to do. In sh: no Python is there yet.
lock=$1 chosen=$2
case $lock in
  cpu) versions=3.11 said="CPython 3.11" ;;
  *) versions="3.11 3.12 3.13" said="CPython 3.11, 3.12 or 3.13" ;;
esac

refuse() {
  echo "$1" >&2
  exit 1
}

# Asked, not believed: a name in PATH may be another version's, or lead nowhere. Debian packs venv apart.
fits() {
  "$1" -c "import ensurepip, sys, venv
sys.exit(sys.implementation.name != 'cpython' or '%d.%d' % sys.version_info[:2] not in '$versions'.split())" 2>/dev/null
}

machine="$(uname -s) $(uname -m)"
case $lock in
  cpu | gpu)
    [ "$machine" = "Linux x86_64" ] || refuse "$lock.lock is for Linux x86_64, and this is $machine:\
 \`make setup EXTRA=light\` installs what starts runs on a server (docs/server.md)." ;;
esac

if [ -n "$chosen" ]; then
  fits "$chosen" && echo "$chosen" && exit
  refuse "$lock.lock is for $said with venv, and '$chosen' is not that: name another, \`make setup PYTHON=FILE\`\
 (where there is a .venv of another Python, delete it first)."
fi

for version in $versions; do
  for python in "python$version" python3; do
    if fits "$python"; then command -v "$python" && exit; fi
  done
done

if command -v uv >/dev/null; then
  for version in $versions; do
    python=$(uv python find --system "$version" 2>/dev/null) && fits "$python" && echo "$python" && exit
  done
  version=${versions##* }
  echo "No $said in PATH: uv fetches $version …" >&2
  uv python install "$version" >&2 && python=$(uv python find --system "$version") && fits "$python" &&
    echo "$python" && exit
fi
refuse "$lock.lock is for $said with venv, which is neither in PATH nor to be had from uv: install it (Debian and Ubuntu:\
 \`apt install python${versions%% *} python${versions%% *}-venv\`) or uv, or name it, \`make setup PYTHON=FILE\`."
