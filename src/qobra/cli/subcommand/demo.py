"""``qobra demo``: the main job from end to end. ``make run`` is this.

A storage daemon serves a disk over NBD. While a writer keeps changing the disk through NBD, a backup job copies it
under QMP. Then the backup is compared, block by block, with what the disk held at the instant the job began.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

from qobra.cli._demo.daemon import Daemon
from qobra.cli._demo.progress import Bar
from qobra.cli._demo.writer import BLOCK, Writer, mismatches
from qobra.cli._tool.process import end_in_order
from qobra.errors import QobraError
from qobra.units import size_text

HELP = "serve a disk over NBD and back it up live: the whole job, from end to end"

MIB = 1 << 20
NEW_DISK_SIZE = 512 * MIB
FILL = 192 * MIB
# Slow enough for the writer to get in the way of the job, fast enough to be watched.
SPEED = 128 * MIB


def main(argv: list[str]) -> int:
    """Run the job; returns 0 if the backup is what it should be."""
    parser = argparse.ArgumentParser(prog="qobra demo", description=HELP)
    parser.add_argument("--disk", metavar="PATH", help="use this disk, through an overlay: it is never written")
    parser.add_argument("--stay", action="store_true", help="leave the daemon up and print how to connect")
    options = parser.parse_args(argv)
    end_in_order()  # the daemon has a session of its own: nobody else ends it
    directory = tempfile.mkdtemp(prefix="qobra-demo-")
    daemon = None
    stays = False
    try:
        if options.disk is not None and not os.path.isfile(options.disk):
            raise QobraError(f"--disk: there is no file {options.disk}")
        daemon = Daemon(directory)
        good = run(daemon, options.disk)
        stays = good and options.stay
        if stays:
            print(daemon.how_to_connect())
        return 0 if good else 1
    except (QobraError, OSError) as error:
        print(f"qobra demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    finally:
        if not stays:
            if daemon is not None:
                daemon.close()
            shutil.rmtree(directory, ignore_errors=True)


def run(daemon: Daemon, disk: str | None) -> bool:
    """Serve, write, back up, verify; whether the backup is right."""
    began = time.monotonic()
    say("start", f"qobra-storage-daemon answered QMP {daemon.start_ms:.0f} ms after it was started")
    before = os.stat(disk) if disk else None
    size = daemon.add_overlay(disk) if disk else daemon.add_new_disk(NEW_DISK_SIZE)
    source = f"an overlay on {disk}" if disk else "a new qcow2 disk"
    say("disk", f"{source} of {size_text(size)}, exported at {daemon.uri('disk')}")

    with daemon.nbd("disk") as client:
        writer = Writer(client, size)
        filled = writer.fill(min(FILL, size // 2))
        rate = filled / max(1e-9, writer.seconds)
        say("write", f"{size_text(filled)} written through NBD at {size_text(int(rate))}/s, 64 KiB a request")
        daemon.add_backup_target(size)
        writer.start()
        with writer.paused():
            # No write is under way at the instant that the backup is of.
            daemon.start_backup(SPEED)
            expected = dict(writer.versions)
        bar = Bar("backup")
        for progress in daemon.qmp.jobs["backup"].watch(interval=0.1):
            bar.show(progress.fraction, f"{size_text(progress.current)}, {writer.count} writes meanwhile")
        daemon.qmp.jobs["backup"].wait()
        bar.end()
        writer.stop()
        changed = sum(version != expected.get(block, 0) for block, version in writer.versions.items())
        say("job", f"{size_text(size)} backed up in {bar.seconds:.1f} s, {changed} blocks changed since it began")

        bar = Bar("verify")
        wrong = daemon.verify(lambda backup, base: mismatches(backup, base, size, expected, bar.show))
        bar.end()
    if wrong:
        say("FAILED", f"{wrong} of {size // BLOCK} blocks differ from the disk at the instant the backup began")
        return False
    say("verify", "every block is as the disk had it at the instant the backup began")
    check_with_qemu(daemon.backup_path)
    if before is not None and disk is not None:
        after = os.stat(disk)
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            say("FAILED", f"{disk} has been written to")
            return False
        say("disk", f"{disk} was not written")
    say("done", f"in {time.monotonic() - began:.1f} s")
    return True


def check_with_qemu(path: str) -> None:
    """Let qemu-img have its say where it is installed; it opens the file beside the daemon, for reading only."""
    qemu_img = shutil.which("qemu-img")
    if qemu_img is not None:
        result = subprocess.run([qemu_img, "check", "-U", "-q", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        verdict = "finds nothing wrong with" if result.returncode == 0 else "finds fault with"
        say("qemu-img", f"{verdict} the backup")


def say(topic: str, text: str) -> None:
    """One line of the story."""
    print(f"{topic:>9}  {text}", flush=True)
