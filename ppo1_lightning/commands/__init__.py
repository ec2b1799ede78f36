"""The command line: a file for each command, see ``__main__``."""

from ppo1_lightning.commands.late_import import hamming, import_late

# Here, for it must come before Lightning is imported, in each rank too.
import_late("scipy.signal", hamming=hamming)
