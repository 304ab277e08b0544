"""Writing files. Every file that minisd writes goes through this room. It promises:

* A file that minisd did not make is never replaced. Pictures, and pages without a chosen name, get
  a new name each time. A file that the user names is replaced only if it holds minisd's mark
  (marks.py). Links are not written through, and no command replaces a file that it reads.
* A file is whole or not there: if the disk is full, if the program is stopped, and on file systems
  without hard links (FAT, many network shares) too. A killed program can leave a hidden file that
  ends in .part, and on those file systems an empty file.
* No drawn picture is lost because another program took its name: it gets the next free one.
* Folders and names can be checked first (places.py), before the model is loaded. The checks create
  nothing.
"""

from minisd.files.hashes import sha256
from minisd.files.marks import MARK, is_marked, never, png_bytes
from minisd.files.places import check_file, check_folder, is_taken, next_number, open_folder
from minisd.files.writing import (
    append_line,
    beside,
    new_file,
    numbered,
    write_file,
    write_first,
    write_named,
)

__all__ = [
    "MARK",
    "append_line",
    "beside",
    "check_file",
    "check_folder",
    "is_marked",
    "is_taken",
    "never",
    "new_file",
    "next_number",
    "numbered",
    "open_folder",
    "png_bytes",
    "sha256",
    "write_file",
    "write_first",
    "write_named",
]
