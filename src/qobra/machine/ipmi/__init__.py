"""IPMI (Intelligent Platform Management Interface 2.0): management controllers, and how hosts reach them."""
