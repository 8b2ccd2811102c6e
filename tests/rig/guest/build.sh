#!/bin/bash
# Build the initramfs of the rig's guest. No root needed; about 0.5 s.
#
# usage: build.sh OUTDIR [KERNEL_VERSION]
#
# Writes OUTDIR/vmlinuz, OUTDIR/rigwriter, OUTDIR/riglatency and, last and by rename, OUTDIR/initramfs.cpio:
# where that file is, the directory is complete. The source tree is only read.
# Needs: linux-image-cloud-amd64 busybox-static qemu-guest-agent cpio kmod gcc libc6-dev
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

fail() { echo "build.sh: $*" >&2; exit 1; }

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || fail "usage: build.sh OUTDIR [KERNEL_VERSION]"
mkdir -p "$1"
out=$(cd "$1" && pwd)
kernel=${2:-$(cd /lib/modules && printf '%s\n' *-cloud-amd64 | sort -V | tail -n 1)}
[ -r "/boot/vmlinuz-$kernel" ] || fail "no kernel /boot/vmlinuz-$kernel (linux-image-cloud-amd64)"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,usr/sbin,modules,etc/qemu,lib64,dev,proc,sys,run,tmp}

# Programs: one shell and its tools, the guest agent with its libraries, the writers.
cp "$(command -v busybox)" "$root/bin/busybox"
agent=$(command -v qemu-ga) || fail "no qemu-ga (qemu-guest-agent)"
cp "$agent" "$root/usr/sbin/qemu-ga"
ldd "$agent" | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
for program in rigwriter riglatency; do
  gcc -O2 -Wall -Wextra -static -s -o "$out/$program" "$here/$program.c"
  cp "$out/$program" "$root/bin/"
done
cp "$here/init" "$root/init"
cp "$here/fsfreeze-hook" "$root/etc/qemu/fsfreeze-hook"
chmod 755 "$root/init" "$root/etc/qemu/fsfreeze-hook" "$root"/bin/*

# Modules, each after those that it depends on. (ext4 is built into this kernel.)
for module in virtio_pci virtio_blk virtio_console virtio_scsi sd_mod; do
  modprobe -S "$kernel" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' | while read -r file; do
  cp "$file" "$root/modules/"
  basename "$file"
done > "$root/modules/order"

cp "/boot/vmlinuz-$kernel" "$out/vmlinuz"
(cd "$root" && find . -mindepth 1 | LC_ALL=C sort \
  | cpio -o -H newc -R 0:0 --reproducible --quiet) > "$out/initramfs.part"
mv "$out/initramfs.part" "$out/initramfs.cpio"
