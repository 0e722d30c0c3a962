"""What a PC tells its guest of the hardware: the tables of SMBIOS, and what users have to say about them."""
