"""What ``qobra schema`` does, one module an action."""
