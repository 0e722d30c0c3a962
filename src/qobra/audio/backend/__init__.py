"""The kinds of audio backends, each under the name that ``-audiodev`` has for it."""
