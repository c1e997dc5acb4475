"""Errors that a person can cause and mend: bad input, missing files, a machine that lacks something.

The command line shows such an error as one sentence (`ai_wam.cli.errors`). Any other exception is a fault of
this project and keeps its traceback. Each class is also the built-in exception that Python programs expect,
so `except ValueError` holds for an `InvalidValue`.
"""


class UserError(Exception):
    """The message names the thing, its value, the limit and the way out."""


class InvalidValue(UserError, ValueError):
    """A value that cannot be used: an argument, a setting, a file's content."""


class InvalidType(UserError, TypeError):
    """A value or an object of the wrong kind."""


class InvalidIndex(UserError, IndexError):
    """A number of an episode, a frame or another item that is not there."""


class MissingFile(UserError, FileNotFoundError):
    """A file or a folder that is not there."""


class ExistingFile(UserError, FileExistsError):
    """A file or a folder that is there already and is not overwritten."""


class FileTrouble(UserError, OSError):
    """A file that the operating system or a store does not read or write."""


class MissingPackage(UserError, ModuleNotFoundError):
    """An optional package that is not installed."""


class CannotContinue(UserError, RuntimeError):
    """Work that cannot be done here, though its settings are valid."""


class LostEpisode(UserError, RuntimeError):
    """An episode that a source cannot give; the next one may be there."""
