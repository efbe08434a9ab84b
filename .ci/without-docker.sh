#!/usr/bin/env bash
# A container engine and a base image where there is neither docker nor an image registry: Debian 12, as root.
#
#   eval "$(.ci/without-docker.sh)"     installs podman, makes the base once, prints the variables that are set
#   midog container build BUNDLE $MIDOG_BUILD && midog container test BUNDLE
#
# The base stands in for pytorch/pytorch: Debian's own Python, and the torch and torchvision of .venv beside it. It has
# the layout and the versions of the real one, not its CUDA build, its driver or its Linux distribution.
# Settings are our own (CONTAINERS_STORAGE_CONF, CONTAINERS_CONF): the machine's podman stays as it is, and
# `rm -rf "$MIDOG_ENGINE"` removes everything.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "this needs root; with docker or podman at hand it is not needed" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
MIDOG_ENGINE=${MIDOG_ENGINE:-${XDG_CACHE_HOME:-$HOME/.cache}/midog-engine}
base=localhost/pytorch-stand-in:2.9.1
mkdir -p "$MIDOG_ENGINE"

missing=()
for tool in podman runc mmdebstrap; do command -v $tool >/dev/null || missing+=($tool); done
if [ ${#missing[@]} -gt 0 ]; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >"$MIDOG_ENGINE/apt.log" 2>&1 || { tail -5 "$MIDOG_ENGINE/apt.log" >&2; exit 1; }
fi

cat > "$MIDOG_ENGINE/storage.conf" <<X
[storage]
driver = "overlay"
graphroot = "$MIDOG_ENGINE/store"
runroot = "/run/midog-engine"
X
# runc: Debian 12's crun refuses machines with hybrid cgroups. default_ulimits: podman asks for a million open files
# otherwise, which a root without CAP_SYS_RESOURCE may not set.
cat > "$MIDOG_ENGINE/containers.conf" <<X
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "/run/midog-engine/libpod"
X
export CONTAINERS_STORAGE_CONF=$MIDOG_ENGINE/storage.conf CONTAINERS_CONF=$MIDOG_ENGINE/containers.conf

if ! podman image exists "$base"; then
  free=$(df --output=avail -BG "$MIDOG_ENGINE" | tail -1 | tr -dc 0-9)
  [ "$free" -ge 20 ] || { echo "the base image takes 20 GB while it is made; $MIDOG_ENGINE has $free" >&2; exit 1; }
  echo "making the stand-in base image (once, about two minutes)" >&2
  packages=$MIDOG_ENGINE/torch-packages
  rm -rf "$packages"
  "$root/.venv/bin/python" "$root/.ci/copy_torch.py" "$packages"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv \
    --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --customize-hook='rm -f "$1"/etc/hostname "$1"/etc/resolv.conf; ln -sf python3 "$1"/usr/bin/python' \
    --customize-hook="cp -a '$packages/.' \"\$1\"/usr/lib/python3/dist-packages/" \
    bookworm - 2>"$MIDOG_ENGINE/base.log" | podman import --quiet \
      --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$base" >/dev/null
  rm -rf "$packages"
fi

podman run --rm --network none "$base" true || { echo "podman cannot run a container here" >&2; exit 1; }

# A build step sees the package index as this machine does: its pip settings, certificates and local folders, read-only.
binds=()
for path in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do [ ! -e $path ] || binds+=("--volume=$path:$path:ro"); done
for path in "$HOME/.config/pip/pip.conf" /etc/xdg/pip/pip.conf; do
  if [ -e "$path" ]; then binds+=("--volume=$path:/etc/xdg/pip/pip.conf:ro"); break; fi
done
while read -r path; do
  case $path in file://*) path=$(dirname "${path#file://}") ;; esac    # an index and the files it points to
  [ ! -d "$path" ] || binds+=("--volume=$path:$path:ro")
done < <(python3 -m pip config list 2>/dev/null | grep -oE "(file://)?/[^ '\"]+" | grep -v -e '\.crt' -e '\.txt' | sort -u)
options=(--isolation=chroot --network=host --pull=never "${binds[@]}")
cat <<X
export CONTAINERS_STORAGE_CONF='$CONTAINERS_STORAGE_CONF' CONTAINERS_CONF='$CONTAINERS_CONF'
export MIDOG_BUILD='--engine podman --base $base --cuda 12.8 ${options[*]/#/--engine-arg=}'
X
