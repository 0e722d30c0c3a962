"""Network backends: where a guest's network card is plugged in."""
