"""``remotegpu user|customer|workspace|notifications|audit|password``."""

from __future__ import annotations

import argparse
import getpass
import sys
from itertools import islice

import remotegpu
from remotegpu.cli import output
from remotegpu.cli.connection import connect
from remotegpu.cli.failures import UsageError


def _secret(prompt: str) -> str:
    """Without echo from a terminal, else a line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{prompt}: ")
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise UsageError(f"Standard input has no line for: {prompt}.")
    return line


def change_password(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        current, new = _secret("Present password"), _secret("New password")
        client.me.change_password(current_password=current, new_password=new)
    output.say(arguments, "The password is changed; every other session has ended.", changed=True)


def reset_password(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        if arguments.ask:
            client.auth.request_password_reset(arguments.ask)
            output.say(arguments, "If the account has an e-mail address, a link is on its way.", asked=True)
            return
        client.auth.finish_password_reset(secret=_secret("Secret"), new_password=_secret("New password"))
    output.say(arguments, "The password is set; sign in with it.", changed=True)


def list_users(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "User", client.users.list(status=arguments.status))


def add_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        created = client.users.create(
            username=arguments.username,
            customer=arguments.customer,
            display_name=arguments.display_name,
            email=arguments.email,
            role=arguments.role,
        )
    shown = f" One-time password, shown this once: {created.one_time_password}"
    sentence = f"{created.user.username} ({created.user.role}) may sign in."
    output.show_item(arguments, created, sentence + (shown if created.one_time_password else ""))


def suspend_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        user = client.users.suspend(
            arguments.user, environments=arguments.environments, grace_s=arguments.grace
        )
        output.show_item(
            arguments, user, f"{user.username} is suspended; {_left(user.stop_environments_at)}."
        )


def resume_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        user = client.users.resume(arguments.user)
        output.show_item(arguments, user, f"{user.username} is active.")


def rm_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.users.delete(arguments.user, environments=arguments.environments, grace_s=arguments.grace)
    output.say(arguments, f"The account {arguments.user} is deleted.", user=arguments.user)


def tokens_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Token", client.users.tokens(arguments.user))


def revoke_token_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.tokens.delete(arguments.token)
    output.say(arguments, f"The token {arguments.token} has ended.", token=arguments.token)


def reset_link_user(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        link = client.users.create_password_reset(arguments.user)
    how = link.url or f"Type `remotegpu reset-password` and then this secret: {link.secret}"
    output.show_item(arguments, link, f"Works once, for 30 minutes, and is shown this once:\n  {how}")


def _left(stop_at: object) -> str:
    return "what runs is kept" if stop_at is None else "what runs is stopped"


def list_customers(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Customer", client.customers.list())


def add_customer(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        made = client.customers.create(
            name=arguments.name,
            display_name=arguments.display_name,
            company=arguments.company,
            code=arguments.code,
        )
        output.show_item(arguments, made, f"The customer {made.name} is there.")


def suspend_customer(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.customers.suspend(
            arguments.customer, environments=arguments.environments, grace_s=arguments.grace
        )
        output.show_item(arguments, found, f"{found.name} is suspended; {_left(found.stop_environments_at)}.")


def resume_customer(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.customers.resume(arguments.customer)
        output.show_item(arguments, found, f"{found.name} is active.")


def list_workspaces(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Workspace", client.workspaces.list(mine=arguments.mine or None))


def add_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        made = client.workspaces.create(name=arguments.name, description=arguments.description)
        output.show_item(arguments, made, f"{made.name} is there: {made.id}")


def _find(client: remotegpu.Client, given: str) -> str:
    """The id of a workspace given by id, or by the name of one of the caller's."""
    found = [one.id for one in client.me.get().workspaces if given in (one.id, one.name)]
    if len(found) > 1:
        raise UsageError(f"Several of your workspaces are called {given}: {', '.join(found)}. Give the id.")
    return found[0] if found else given


def members_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        members = client.workspaces.list_members(_find(client, arguments.workspace))
        output.show_list(arguments, "WorkspaceMember", members)


def archive_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.workspaces.archive(_find(client, arguments.workspace))
        output.show_item(arguments, found, f"{found.name} is archived.")


def restore_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.workspaces.restore(_find(client, arguments.workspace))
        output.show_item(arguments, found, f"{found.name} is active.")


def rm_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.workspaces.delete(_find(client, arguments.workspace))
    output.say(arguments, f"{arguments.workspace} is deleted.", workspace=arguments.workspace)


def join_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.workspaces.join(_find(client, arguments.workspace))
    output.say(arguments, f"You are a member of {arguments.workspace}.", workspace=arguments.workspace)


def decline_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.workspaces.decline(_find(client, arguments.workspace))
    output.say(arguments, f"You declined {arguments.workspace}.", workspace=arguments.workspace)


def invite_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        workspace = _find(client, arguments.workspace)
        member = client.workspaces.add_member(
            workspace, user=arguments.user, role=arguments.role, invite=True
        )
        output.show_item(arguments, member, f"{member.username} is invited as {member.role}.")


def add_member_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        workspace = _find(client, arguments.workspace)
        known = {
            name
            for member in client.workspaces.list_members(workspace)
            for name in (member.user_id, member.username)
        }
        if arguments.user in known:
            member = client.workspaces.update_member(workspace, arguments.user, role=arguments.role)
        else:
            member = client.workspaces.add_member(workspace, user=arguments.user, role=arguments.role)
        output.show_item(arguments, member, f"{member.username} is {member.role} of it.")


def remove_member_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.workspaces.remove_member(_find(client, arguments.workspace), arguments.user)
    output.say(arguments, f"{arguments.user} is no member any more.", user=arguments.user)


def transfer_workspace(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.workspaces.transfer(_find(client, arguments.workspace), user=arguments.user)
        output.show_item(arguments, found, f"{found.owner} owns {found.name}.")


def list_notifications(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.notifications.list(unread=arguments.unread or None)
        output.show_list(arguments, "Notification", found)


def read_notifications(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        if arguments.notification is not None:
            one = client.notifications.read(arguments.notification)
            output.show_item(arguments, one, one.message)
            return
        left = client.notifications.read_all()
        output.show_item(arguments, left, "Nothing is left to read.")


def watch_notifications(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        for one in client.notifications.watch(after=arguments.after):
            output.show_item(arguments, one, f"{one.created_at:%Y-%m-%d %H:%M} {one.level}: {one.message}")


def list_preferences(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "NotificationPreference", client.notifications.preferences().preferences)


def set_preference(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        one = client.notifications.set_preference(
            arguments.kind, in_app=not arguments.not_in_app, mail=arguments.mail
        )
        output.show_item(arguments, one, f"{one.kind}: mail {one.mail}, in the inbox: {one.in_app}.")


def delete_preference(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.notifications.delete_preference(arguments.kind)
    output.say(arguments, f"The preference {arguments.kind} is forgotten.", kind=arguments.kind)


def list_audit(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.audit.list(
            actor=arguments.actor,
            action=arguments.action,
            resource_type=arguments.resource_type,
            resource_id=arguments.resource_id,
            outcome=arguments.outcome,
            limit=min(max(arguments.limit, 1), 200),
        )
        output.show_list(arguments, "AuditRecord", list(islice(found, arguments.limit)))


def export_audit(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        text = client.audit.export(
            format=arguments.format,
            actor=arguments.actor,
            action=arguments.action,
            resource_type=arguments.resource_type,
            resource_id=arguments.resource_id,
            outcome=arguments.outcome,
        )
    output.show_text(arguments, text, export=text)


def verify_audit(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.audit.verify(sequence=arguments.sequence, hash=arguments.hash)
    if not found.valid:
        raise remotegpu.Conflict(f"The audit trail is broken: {found.problem}")
    sentence = (
        f"{found.records} records are whole, {found.unsealed} not in the chain yet.\nhead: {found.head}"
    )
    output.show_item(arguments, found, sentence)
