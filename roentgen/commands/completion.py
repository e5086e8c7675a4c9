"""``roentgen completion SHELL``: a script that completes commands and flags."""

from __future__ import annotations

from typing import Annotated, Literal

from roentgen.config import Positional
from roentgen.config.settings import dataclass_of, settings_of

BASH = """\
_roentgen() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words="" depth=1
    case "$command" in
        {groups}) command="$command ${{COMP_WORDS[2]}}"; depth=2 ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{first}"
    elif [ "$COMP_CWORD" -eq 2 ] && [ "$depth" -eq 2 ]; then
        case "${{COMP_WORDS[1]}}" in
{seconds}
        esac
    else
        case "$command" in
{flags}
        esac
        case "$cur" in
            -*) ;;
            *) words="" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$cur"))
}}
complete -o filenames -F _roentgen roentgen"""


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Positional()]) -> int:
    """Print a script that completes roentgen's commands and flags with the Tab key.

        roentgen completion bash >> ~/.bashrc
        roentgen completion fish > ~/.config/fish/completions/roentgen.fish

    In bash and zsh ``eval "$(roentgen completion zsh)"`` in ~/.zshrc does the same and follows new versions.

    Settings:
        shell: The shell that you use.
    """
    table = flags_of_commands()
    if shell == "fish":
        print("\n".join(_fish(table)))
        return 0
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_bash(table))
    return 0


def flags_of_commands() -> dict[str, list[str]]:
    """The flags of each command, by its name."""
    from roentgen.commands import COMMANDS, data, train
    from roentgen.data.sources import SOURCES

    table: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        if not command.raw:
            own = [one.flag for one in settings_of(dataclass_of(command.find())) if not one.positional]
            table[name] = [*own, "--config", "--help"]
    theirs = [dataclass_of(source.reader, leave_out=data.OWN) for source in SOURCES.values()]
    flags = [
        one.flag for cls in (dataclass_of(data.prepare), *theirs) for one in settings_of(cls) if not one.positional
    ]
    table["data prepare"] = [*dict.fromkeys(flags), "--config", "--help"]
    table |= {f"train {name}": ["--config", "--help"] for name in train.RECIPES}
    return table


def _seconds(table: dict[str, list[str]]) -> dict[str, list[str]]:
    """The second words of commands of two words, by the first."""
    pairs = [name.split() for name in table if " " in name]
    return {
        first: [pair[1] for pair in pairs if pair[0] == first] for first in dict.fromkeys(pair[0] for pair in pairs)
    }


def _bash(table: dict[str, list[str]]) -> str:
    seconds = _seconds(table)
    return BASH.format(
        groups="|".join(seconds),
        first=" ".join(dict.fromkeys(name.split()[0] for name in table)),
        seconds="\n".join(f'            {first}) words="{" ".join(words)}" ;;' for first, words in seconds.items()),
        flags="\n".join(f'            "{name}") words="{" ".join(flags)}" ;;' for name, flags in table.items()),
    )


def _fish(table: dict[str, list[str]]) -> list[str]:
    seconds = _seconds(table)
    first = " ".join(dict.fromkeys(name.split()[0] for name in table))
    lines = [f"complete -c roentgen -n __fish_use_subcommand -f -a '{first}'"]
    for name, words in seconds.items():
        unseen = f"__fish_seen_subcommand_from {name}; and not __fish_seen_subcommand_from {' '.join(words)}"
        lines.append(f"complete -c roentgen -n '{unseen}' -f -a '{' '.join(words)}'")
    for name, flags in table.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        lines += [f"complete -c roentgen -n '{seen}' -l {flag[2:]}" for flag in flags]
    return lines
