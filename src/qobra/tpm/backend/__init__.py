"""One module for each kind of TPM back end."""
