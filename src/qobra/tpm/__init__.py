"""TPM back ends: what carries out the commands of a TPM device."""
