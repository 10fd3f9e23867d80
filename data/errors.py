"""What all errors have in common that a user can mend: programs print their message and end with status 1."""


class UserError(Exception):
    """Wrong data, settings or surroundings; the message says where, what was found and what was expected."""
