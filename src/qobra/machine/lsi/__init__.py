"""LSI Logic's 53C895A, a SCSI adapter whose processor runs SCRIPTS (LSI53C895A Technical Manual, version 2.2)."""
