"""Bad input of every kind for every command, from a seed, in one process.

Input i of a seed is always the same: `python tests/fuzz --seed 7 --only 123` repeats one, `--inputs 20000 --json
FILE` runs many. A finding is a traceback, a hang, too much memory, or a wrong success: exit code 0 although the input
must be refused, or although what was written is not whole.

- `limits.py`: one command line under limits
- `values.py`: values of flags and YAML files by the types of the settings
- `damage.py`: bytes, tables, JSON, images and folders that are damaged
- `world.py`: the sound files that all inputs start from
- `cases.py`: the kinds of input, and what each must come to
- `harness.py`: the loop, the counts, the command line
"""
