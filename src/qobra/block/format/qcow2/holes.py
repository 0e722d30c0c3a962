"""Whether an image's data clusters may be holes of its file, as after ``preallocation=metadata``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image


def looks_preallocated(image: Image) -> bool:
    """Whether clearly more clusters are in use than the file takes on the host.

    Only then is the file asked for holes, which costs a system call for each run. QEMU decides in the same way, so
    both call the same clusters zero.
    """
    allocated = image.file.allocated_size()
    if allocated is None:
        return False
    # The last cluster of the file may be there in part.
    real = (allocated + (-image.file.length & image.cluster_mask)) >> image.cluster_bits
    threshold = max(real * 10 // 9, real + 2)
    used = 0
    end = -(-image.file.length >> image.cluster_bits)
    refcounts = image.refcounts
    with image.lock:
        for index in range(-(-end >> refcounts.block_bits)):
            block = refcounts.block(index)
            if block is None:
                continue
            counts = block.counts[: end - (index << refcounts.block_bits)]
            used += len(counts) - counts.count(0)
            if used >= threshold:
                return True
    return False
