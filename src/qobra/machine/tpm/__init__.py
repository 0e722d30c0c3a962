"""TPM interfaces: what guests see of a TPM, and the memory by which firmware and operating systems arrange things."""
