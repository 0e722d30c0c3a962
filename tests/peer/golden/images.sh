set -e
truncate -s 1M r.raw; printf abc | dd of=r.raw bs=1 seek=65536 conv=notrunc status=none; cp r.raw r2.raw; printf x | dd of=r2.raw bs=1 seek=100000 conv=notrunc status=none
printf abc | dd of=r2.raw bs=1 seek=65536 conv=notrunc status=none
cp r.raw big.raw; truncate -s 2M big.raw;  printf x | dd of=big.raw bs=1 seek=1600000 conv=notrunc status=none
head -c 1000000 /dev/urandom > n.raw
qemu-img create -q -f qcow2 a.qcow2 4M; qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2; qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 c.qcow2
qemu-io -c 'write -P 1 0 1M' a.qcow2; qemu-io -c 'write -P 2 512k 64k' -c 'write -z 1M 128k' -c 'discard 64k 64k' b.qcow2; qemu-io -c 'write -P 3 2M 100k' c.qcow2
qemu-img create -u -q -f qcow2 -b l2.qcow2 -F qcow2 l1.qcow2 1M; qemu-img create -u -q -f qcow2 -b l1.qcow2 -F qcow2 l2.qcow2 1M; qemu-img create -u -q -f qcow2 -b nofile -F qcow2 l3.qcow2 1M
qemu-img convert -c -O qcow2 r.raw comp.qcow2
qemu-img create -q -f qcow2 s.qcow2 1M; qemu-img snapshot -c one s.qcow2; qemu-io -c 'write 0 64k' s.qcow2; qemu-img snapshot -c two s.qcow2
qemu-img create -q -f qcow2 bm.qcow2 1M; qemu-img bitmap --add bm.qcow2 b0; qemu-img bitmap --add --disable -g 4k bm.qcow2 b1
cp c.qcow2 d1.qcow2; cp c.qcow2 d2.qcow2
python3 - <<'P'
f=open('d1.qcow2','r+b'); f.seek(0x20000+8); f.write(b'\0\5'); f.close()
f=open('d2.qcow2','r+b'); f.seek(0x20000+10); f.write(b'\0\0'); f.close()
P
