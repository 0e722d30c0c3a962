"""Images made by name and format, with the older ``name=value`` options: qemu-img create, mirrors, snapshots.

One module a format says which options there are and what they mean as BlockdevCreateOptions; it is found by the
format's name. The image itself is made by the driver.
"""
