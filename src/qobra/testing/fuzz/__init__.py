"""Random QMP scripts to QEMU and to Qobra, and what is answered otherwise.

    python -m qobra.testing.fuzz --seed 1 --count 100

A script is drawn from the schema while QEMU plays it (:mod:`.script`, :mod:`.values`), so that most of its commands
make sense for the nodes, jobs and bitmaps that there are. Then Qobra plays the same one (:mod:`.play`); what differs
first is told, with the shortest script found that still shows it (:mod:`.trial`).
"""
