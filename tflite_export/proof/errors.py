"""The error of a file that is not what was chosen."""


class VerificationError(Exception):
  """The file does not hold or compute what was chosen; the message says where."""
