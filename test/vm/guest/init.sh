#!/bin/sh
# Process 1 of the initial RAM disk: puts the root file system together from two read-only disks
# (the system, and this kernel's modules above it) and memory, and gives way to start.sh in it.
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
while read -r module; do insmod "/early/$module"; done </early/order

give_up() {
  echo "replpage-vm: $1"
  dmesg | tail -n 30
  poweroff -f
}

# Disks are found by their serial numbers: their letters follow the order of probing.
disk() {
  tries=0
  while [ $tries -lt 100 ]; do
    for block in /sys/block/vd*; do
      if [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ]; then
        echo "/dev/${block##*/}"
        return
      fi
    done
    tries=$((tries + 1))
    sleep 0.05
  done
}

mount -t squashfs -o ro "$(disk system)" /system || give_up 'the system image cannot be mounted'
mount -t squashfs -o ro "$(disk modules)" /modules || give_up 'the modules cannot be mounted'
mount -t tmpfs -o size=75% tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/modules:/system,upperdir=/memory/upper,workdir=/memory/work overlay /root ||
  give_up 'the root file system cannot be put together'
mount --move /dev /root/dev
umount /proc /sys
exec switch_root /root /vm/start.sh
