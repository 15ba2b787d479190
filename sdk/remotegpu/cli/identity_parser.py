"""Commands of accounts, workspaces, notifications, alerts and the audit trail, and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction  # argparse has no public name for it
    Add = Callable[[Commands[argparse.ArgumentParser], str, str, str], argparse.ArgumentParser]
    Group = Callable[[Commands[argparse.ArgumentParser], str, str], Commands[argparse.ArgumentParser]]

_SEVERITIES = ("info", "warning", "critical")
_RUNNING = ("keep", "stop", "stop_after_grace")


def add_commands(commands: Commands[argparse.ArgumentParser], add: Add, group: Group) -> None:
    """Everything of this module; ``add`` and ``group`` make a command and a group of them."""
    _passwords(commands, add)
    _users(group(commands, "user", "users (admins, owners)"), add)
    _customers(group(commands, "customer", "customers: the tenants (admins)"), add)
    _workspaces(group(commands, "workspace", "workspaces: where teams work together"), add)
    _notifications(group(commands, "notifications", "what you are told"), add)
    _alerts(group(commands, "alert", "what the alert rules say"), add)
    _alert_rules(group(commands, "alert-rule", "rules of alerts (admins)"), add)
    _alert_silences(group(commands, "alert-silence", "keep quiet about alerts (admins)"), add)
    _webhooks(group(commands, "webhook", "programs that are told what happens"), add)
    _audit(group(commands, "audit", "who did what (admins, owners)"), add)


def _passwords(commands: Commands[argparse.ArgumentParser], add: Add) -> None:
    add(commands, "password", "identity.change_password", "change your password; asks for both")
    reset = add(commands, "reset-password", "identity.reset_password", "set a password with a link's secret")
    reset.add_argument("--ask", metavar="USER", help="let the server mail a link to this name or address")


def _users(user: Commands[argparse.ArgumentParser], add: Add) -> None:
    listed = add(user, "list", "identity.list_users", "list users")
    listed.add_argument("--status", choices=["active", "suspended", "deleted"])
    new = add(user, "add", "identity.add_user", "make a user; prints the one-time password")
    new.add_argument("username")
    new.add_argument("--customer", help="id or name; left out: yours")
    new.add_argument("--display-name")
    new.add_argument("--email")
    new.add_argument("--role", choices=["admin", "owner", "member"])
    for verb, what in (
        ("suspend", "keep a user out"),
        ("resume", "end a suspension"),
        ("rm", "delete an account for good; its name stays taken"),
        ("reset-link", "make a one-time link to a new password"),
        ("tokens", "list a user's sessions and API tokens"),
    ):
        command = add(user, verb, f"identity.{verb.replace('-', '_')}_user", what)
        command.add_argument("user", help="id or user name")
        if verb in ("suspend", "rm"):
            _running(command, default="keep" if verb == "suspend" else "stop")
    revoke = add(user, "revoke-token", "identity.revoke_token_user", "end a session or an API token at once")
    revoke.add_argument("token", help="id, as `user tokens` shows it")


def _running(command: argparse.ArgumentParser, *, default: str) -> None:
    command.add_argument(
        "--environments", choices=_RUNNING, default=default, help="what becomes of what runs (%(default)s)"
    )
    command.add_argument("--grace", type=int, metavar="S", help="seconds, for stop_after_grace")


def _customers(customer: Commands[argparse.ArgumentParser], add: Add) -> None:
    add(customer, "list", "identity.list_customers", "list customers with what they use")
    new = add(customer, "add", "identity.add_customer", "make a customer")
    new.add_argument("name")
    new.add_argument("--display-name")
    new.add_argument("--company")
    new.add_argument("--code", help="your own number of it")
    suspend = add(customer, "suspend", "identity.suspend_customer", "keep all its users out")
    resume = add(customer, "resume", "identity.resume_customer", "end a suspension")
    for command in (suspend, resume):
        command.add_argument("customer", help="id or name")
    _running(suspend, default="keep")


def _workspaces(workspace: Commands[argparse.ArgumentParser], add: Add) -> None:
    listed = add(workspace, "list", "identity.list_workspaces", "list workspaces")
    listed.add_argument("--mine", action="store_true", help="only those you are a member of")
    new = add(workspace, "add", "identity.add_workspace", "make a workspace of a team")
    new.add_argument("name")
    new.add_argument("--description")
    for verb, what in (
        ("members", "list its members"),
        ("archive", "let nothing start in it any more"),
        ("restore", "take it out of the archive"),
        ("rm", "delete it with its ended environments"),
        ("join", "accept an invitation"),
        ("decline", "decline an invitation"),
        ("invite", "invite a user"),
        ("add-member", "let a user in, or change the role of a member"),
        ("remove-member", "end a membership"),
        ("transfer", "make another member its owner"),
    ):
        command = add(workspace, verb, f"identity.{verb.replace('-', '_')}_workspace", what)
        command.add_argument("workspace", help="id, or the name of one of yours")
        if verb in ("invite", "add-member", "remove-member", "transfer"):
            command.add_argument("user", help="id or user name")
        if verb in ("invite", "add-member"):
            command.add_argument("--role", choices=["admin", "member", "viewer"], default="member")


def _notifications(notifications: Commands[argparse.ArgumentParser], add: Add) -> None:
    listed = add(notifications, "list", "identity.list_notifications", "list them, newest first")
    listed.add_argument("--unread", action="store_true")
    read = add(notifications, "read", "identity.read_notifications", "mark one as read, or all")
    read.add_argument("notification", nargs="?", help="id; left out: all")
    watch = add(
        notifications, "watch", "identity.watch_notifications", "print what you are told, as it comes"
    )
    watch.add_argument("--after", help="position to go on from; 0: all that is kept")
    add(notifications, "preferences", "identity.list_preferences", "how you are told of what")
    prefer = add(notifications, "prefer", "identity.set_preference", "set how you are told of a kind")
    prefer.add_argument("kind", help="environment.stops_soon, environment, or '*'")
    prefer.add_argument("--mail", choices=["now", "digest", "off"])
    prefer.add_argument("--not-in-app", action="store_true", help="not in the inbox and the notebook")
    forget = add(notifications, "forget", "identity.delete_preference", "forget a preference")
    forget.add_argument("kind")


def _alerts(alert: Commands[argparse.ArgumentParser], add: Add) -> None:
    listed = add(alert, "list", "alerts.list_", "list what fires, newest first")
    listed.add_argument("--all", action="store_true", help="also what is pending or resolved")
    listed.add_argument("--severity", choices=_SEVERITIES)
    listed.add_argument("--rule", help="name or id")
    add(alert, "show", "alerts.show", "what it is, since when, and what to do").add_argument("alert")
    add(alert, "acknowledge", "alerts.acknowledge", "say that you look after it").add_argument("alert")


def _alert_rules(rule: Commands[argparse.ArgumentParser], add: Add) -> None:
    add(rule, "list", "alerts.list_rules", "list rules by name")
    add(rule, "signals", "alerts.list_signals", "what rules can be about")
    create = add(rule, "create", "alerts.create_rule", "make a rule")
    create.add_argument("name")
    create.add_argument("--signal", required=True, help="see `alert-rule signals`")
    change = add(rule, "set", "alerts.set_rule", "change a rule")
    change.add_argument("rule")
    for command in (create, change):
        command.add_argument("--threshold", type=float, required=command is create)
        command.add_argument("--operator", choices=[">", ">=", "<", "<=", "=="])
        command.add_argument("--duration", type=float, metavar="SECONDS")
        command.add_argument("--severity", choices=_SEVERITIES)
    add(rule, "enable", "alerts.enable_rule", "judge it").add_argument("rule")
    add(rule, "disable", "alerts.disable_rule", "switch it off").add_argument("rule")
    add(rule, "delete", "alerts.delete_rule", "delete it").add_argument("rule")


def _alert_silences(silence: Commands[argparse.ArgumentParser], add: Add) -> None:
    add(silence, "list", "alerts.list_silences", "list silences that hold")
    create = add(silence, "create", "alerts.create_silence", "tell nobody for a while")
    create.add_argument("--rule", help="name or id; left out: every rule")
    create.add_argument("--object", help="id or name; left out: every object")
    create.add_argument("--hours", type=float, default=1.0)
    create.add_argument("--reason")
    add(silence, "delete", "alerts.delete_silence", "end one now").add_argument("silence")


def _webhooks(webhook: Commands[argparse.ArgumentParser], add: Add) -> None:
    add(webhook, "list", "webhooks.list_", "list yours")
    create = add(webhook, "create", "webhooks.create", "have a URL told; prints the secret once")
    create.add_argument("url")
    create.add_argument("--event", action="append", required=True, help="job.completed, alert.triggered, …")
    for verb, what in (
        ("delete", "delete one"),
        ("test", "send it a test"),
        ("log", "what was sent to it"),
        ("enable", "switch it on"),
        ("disable", "switch it off"),
    ):
        add(webhook, verb, f"webhooks.{verb}", what).add_argument("webhook", metavar="ID")


def _audit(audit: Commands[argparse.ArgumentParser], add: Add) -> None:
    listed = add(audit, "list", "identity.list_audit", "search the audit trail, newest first")
    export = add(audit, "export", "identity.export_audit", "print all of it, oldest first")
    export.add_argument("--format", choices=["jsonl", "csv"], default="jsonl")
    listed.add_argument("--limit", type=int, default=50)
    for command in (listed, export):
        command.add_argument("--actor", help="user name: who did it, or for whom it was done")
        command.add_argument("--action", help="such as users.suspend_user")
        command.add_argument("--resource-type", help="such as hosts")
        command.add_argument("--resource-id")
        command.add_argument("--outcome", choices=["done", "refused", "failed"])
    verify = add(audit, "verify", "identity.verify_audit", "verify the hash chain (admins)")
    verify.add_argument("--sequence", type=int, help="of a record that you kept")
    verify.add_argument("--hash", help="its hash")
