"""AC'97: the mixer of a codec (Intel's component specification 2.3) and the bus masters of its controller."""
