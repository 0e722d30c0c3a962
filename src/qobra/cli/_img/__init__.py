"""The subcommands of qobra-img, one file each: ``main(program, arguments) -> exit status``."""
