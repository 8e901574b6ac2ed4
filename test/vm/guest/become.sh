#!/bin/sh
# Makes a node that was booted or restored into node NUMBER, at the time of the host.
# Usage: become.sh NUMBER SECONDS-SINCE-1970
set -e
number=$1
name=n$number
date -s "@$2" >/dev/null
hostname "$name"
echo "$name" >/etc/hostname
{
  echo "127.0.0.1 localhost"
  for i in 1 2 3 4 5 6 7 8 9; do echo "10.77.0.$i n$i"; done
} >/etc/hosts
: >/etc/resolv.conf
for device in /sys/class/net/e*; do card=${device##*/}; done
ip link set "$card" down
[ "$card" = net0 ] || ip link set "$card" name net0
ip link set net0 address "52:54:00:77:00:0$number"
ip link set net0 up
ip address flush dev net0
ip address add "10.77.0.$number/24" dev net0
# The project's own disk is mounted only now, so that a saved state serves every build of it.
for block in /sys/block/vd*; do
  case $(cat "$block/serial") in
  project) mount -t squashfs -o ro "/dev/${block##*/}" /opt/replpage ;;
  data) ln -sf "/dev/${block##*/}" /dev/data ;;
  esac
done
dd if=/dev/hwrng of=/dev/urandom bs=64 count=1 2>/dev/null || true
