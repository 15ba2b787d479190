"""``remotegpu completion``: scripts for shells, written from the parser, so that they know every command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from remotegpu.cli import output

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Command:
    """What may follow a command."""

    words: tuple[str, ...]
    """The command, such as ``("env", "create")``; empty for the program itself."""
    following: dict[str, str]
    """Commands and fixed values, each with its help."""
    options: dict[str, str]
    valued: dict[str, tuple[str, ...]]
    """Options that take a value, with the values where they are fixed."""

    @property
    def path(self) -> str:
        return " ".join(self.words)


def show(arguments: argparse.Namespace) -> None:
    """Print the script for a shell."""
    from remotegpu.cli.parser import make_parser

    text = script(arguments.shell, make_parser())
    output.show_text(arguments, text, shell=arguments.shell, script=text)


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The completion script of `parser` for one of :data:`SHELLS`."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return write(list(commands(parser)))


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[Command]:
    """The program and every command below it."""
    following: dict[str, str] = {}
    options: dict[str, str] = {}
    valued: dict[str, tuple[str, ...]] = {}
    below: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:  # argparse has no public way to look into a parser
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            following |= {name: helps.get(name, "") for name in action.choices}
            below += action.choices.items()
        elif not action.option_strings:
            following |= {str(choice): "" for choice in action.choices or ()}
        else:
            long = [name for name in action.option_strings if name.startswith("--")]
            options |= dict.fromkeys(long, _help(action, parser))
            if action.nargs != 0:
                choices = tuple(map(str, action.choices or ()))
                valued |= dict.fromkeys(action.option_strings, choices)
    yield Command(words, following, options, valued)
    for name, subparser in below:
        yield from commands(subparser, (*words, name))


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    if action.help in {None, argparse.SUPPRESS}:
        return ""
    return parser._get_formatter()._expand_help(action).partition(";")[0].partition(" (")[0]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}") + "'"


_BASH = """\
# bash completion of remotegpu. In ~/.bashrc: source <(remotegpu completion bash)
_remotegpu_at() {
    words="" valued=""
    case "$1" in
%(at)s    *) return 1 ;;
    esac
}

_remotegpu_values() {
    words=""
    case "$1" in
%(values)s    esac
}

_remotegpu() {
    local at="" skip="" word words valued i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${COMP_WORDS[i]}"
        _remotegpu_at "$at"
        if [[ -n $skip ]]; then skip=""
        elif [[ " $valued " == *" $word "* ]]; then skip=$word
        elif _remotegpu_at "${at:+$at }$word"; then at="${at:+$at }$word"
        fi
    done
    if [[ -n $skip ]]; then _remotegpu_values "$at $skip"; else _remotegpu_at "$at"; fi
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _remotegpu remotegpu
"""


def _bash(found: list[Command]) -> str:
    at = "".join(
        f"    {_quoted(one.path)}) words={_quoted(' '.join([*one.following, *one.options]))}"
        f" valued={_quoted(' '.join(one.valued))} ;;\n"
        for one in found
    )
    values = "".join(
        f"    {_quoted(f'{one.path} {option}')}) words={_quoted(' '.join(choices))} ;;\n"
        for one, option, choices in _fixed(found)
    )
    return _BASH % {"at": at, "values": values}


_ZSH = """\
#compdef remotegpu
# zsh completion of remotegpu. In ~/.zshrc, after compinit: source <(remotegpu completion zsh)
_remotegpu_at() {
    described=() valued=""
    case "$1" in
%(at)s    (*) return 1 ;;
    esac
}

_remotegpu_values() {
    fixed=""
    case "$1" in
%(values)s    esac
}

_remotegpu() {
    local at="" skip="" word valued fixed
    local -a described
    for word in "${(@)words[2,CURRENT-1]}"; do
        _remotegpu_at "$at"
        if [[ -n $skip ]]; then skip=""
        elif [[ " $valued " == *" $word "* ]]; then skip=$word
        elif _remotegpu_at "${at:+$at }$word"; then at="${at:+$at }$word"
        fi
    done
    if [[ -n $skip ]]; then
        _remotegpu_values "$at $skip"
        compadd -- ${=fixed}
    else
        _remotegpu_at "$at"
        _describe remotegpu described
    fi
}
compdef _remotegpu remotegpu
"""


def _zsh(found: list[Command]) -> str:
    at = "".join(
        f"    ({_quoted(one.path)}) described=({_described(one)}) valued={_quoted(' '.join(one.valued))} ;;\n"
        for one in found
    )
    values = "".join(
        f"    ({_quoted(f'{one.path} {option}')}) fixed={_quoted(' '.join(choices))} ;;\n"
        for one, option, choices in _fixed(found)
    )
    return _ZSH % {"at": at, "values": values}


def _described(command: Command) -> str:
    both = {**command.following, **command.options}
    return " ".join(_quoted(f"{name}:{help_}" if help_ else name) for name, help_ in both.items())


_FISH = """\
# fish completion of remotegpu: remotegpu completion fish > ~/.config/fish/completions/remotegpu.fish
function __remotegpu_at
    set -l at
    set -l skip
    for word in (commandline -opc)[2..-1]
        if test -n "$skip"
            set skip
        else if contains -- "$word" %(valued)s
            set skip $word
        else if contains -- (string join " " $at $word) %(paths)s
            set at $at $word
        end
    end
    test "$at" = "$argv[1]"
end
complete -c remotegpu -f
"""


def _fish(found: list[Command]) -> str:
    paths = " ".join(_quoted(one.path) for one in found if one.words)
    valued = " ".join(sorted({option for one in found for option in one.valued}))
    lines = [_FISH % {"paths": paths, "valued": valued}]
    for one in found:
        condition = _quoted(f'__remotegpu_at "{one.path}"')
        start = f"complete -c remotegpu -n {condition}"
        for name, help_ in one.following.items():
            lines.append(f"{start} -a {name}{_fish_help(help_)}\n")
        for name, help_ in one.options.items():
            takes = f" -x -a {_quoted(' '.join(one.valued[name]))}" if name in one.valued else ""
            lines.append(f"{start} -l {name.removeprefix('--')}{takes}{_fish_help(help_)}\n")
    return "".join(lines)


def _fish_help(help_: str) -> str:
    return f" -d {_quoted(help_)}" if help_ else ""


def _fixed(found: list[Command]) -> Iterator[tuple[Command, str, tuple[str, ...]]]:
    """The options whose values are fixed."""
    for one in found:
        for option, choices in one.valued.items():
            if choices:
                yield one, option, choices
