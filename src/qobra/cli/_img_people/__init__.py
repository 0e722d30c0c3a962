"""``qobra img`` for people: what qemu-img has no subcommand for, and progress that tells how long it will take."""
