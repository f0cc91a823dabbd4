"""Limits of what is read from files of others: bytes, counts and depths beyond which a file is refused.

Honest files stay far below them. A hostile file of a few megabytes cannot make a reader that keeps them take more than
256 MiB or 5 seconds.
"""

# Archives (data/sources/files.py)
FILE_BYTES = 2**26  # of one file of a data set
ZIP_BYTES, ZIP_RATIO = 2**27, 100  # unpacked: a zip of more than both, the second times its own size, is refused
TAR_BYTES, TAR_RATIO = 2**25, 16  # the same of a compressed tar, which has to be unpacked to be listed
MEMBER_HEADER_BYTES = 2**18  # of the headers of one member of a tar
DIRECTORY_SHARE = 0.75  # of a zip's bytes, for its directory
NAME_CHARACTERS, NAME_PARTS = 1024, 64  # of a path
TAIL_BYTES = 2**26  # after the end mark of a tar
FOLDER_DEPTH = 64

# Images (data/sources/decode.py)
PIXELS = 2**25  # 8K video has 33 million pixels

# Sounds (data/wav.py)
SOUND_SECONDS = 60  # of one file

# Pickles (unpickle.py)
PICKLE_OPERATIONS = 2**20
PICKLE_COPIES = 8  # bytes copied out of a pickle, in multiples of its size
PICKLE_DEPTH = 200  # of containers in one another
PICKLE_NUMBER_KEYS = 4096  # of a dict or set: numbers, unlike text, can be chosen to have one hash
TENSORS, MODULE_KINDS = 2**16, 2**10  # of a file

# Headers and text
NPY_HEADER_BYTES = 2**14
SAFETENSORS_HEADER_BYTES = 2**22
JSON_BYTES = 2**24
LABEL_BYTES = 256  # of dataset.json, for every image
CAPTION_BYTES = 2**12  # of a line of captions.jsonl, and of dataset.json for every image with a caption
CAPTION_WORDS = 64
VOCABULARY = 2**14  # words of a data set
YAML_CHARACTERS = 2**17
YAML_NODES, YAML_DEPTH = 2**14, 50  # every alias counted as all that it stands for
