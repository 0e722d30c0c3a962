"""What the drop-in programs (qobra-img, qobra-io, qobra-nbd) share: options, texts, opening images."""
