"""Fixed limits of the content of files. Limits of memory are arguments; README.md in this folder lists both."""

SETTINGS_BYTES = 2**20  # of a settings file
YAML_EVENTS = 200_000  # values, and beginnings and ends of lists and mappings, in a settings file
DEPTH = 20  # of lists and mappings inside one another
ENTRIES = 1_000_000  # values of a model's structure, or of settings
TEXT = 1000  # characters of a text
NAME = 100  # characters of a name in a mapping
SETTING = 10**9  # size of a whole number that is a setting, but for the seed
WHOLE_NUMBER = 2**53  # size of a whole number among a part's arguments: float64 has every one up to here
LARGEST = 2**63  # size of any other whole number, as int64 has them
PART_LEVELS = 5  # of parts inside parts whose arguments the command line can give
HEADER_BYTES = 2**25  # of the header of a file of tensors: as Python's objects it takes twenty times that
TENSORS = 100_000  # in a file
JSON_BYTES = 2**24  # of a run's results.json and evaluation-*.json
EPOCHS = 100_000  # rows of the history in a checkpoint
STEPS = 2**40  # of the optimizer, in a checkpoint
BATCH_KINDS = 100  # shapes of batches that a checkpoint tells apart
OBJECTIVE_NUMBERS = 100  # of the state of an objective, in a checkpoint
GRAPH_LEVELS = 10  # of how far the graph of such a batch has come
ARROW_BUFFERS = 10_000_000  # compressed ones in an Arrow file
MODEL_TIMES = 16  # times the numbers of a model file that its structure may ask for
MODEL_SPARE = 1_000_000  # numbers more, before they are multiplied so
