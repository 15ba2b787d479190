"""Answers as a server would write them."""

from __future__ import annotations

AT = "2026-11-24T02:00:00Z"

IMAGE = {
    "id": "img1",
    "name": "base",
    "reference": "registry.example.org/base:1",
    "local": False,
    "display_name": "Base",
    "description": "",
    "digest": None,
    "runtime": "docker",
    "command": None,
    "status": "active",
    "category": "",
    "framework": None,
    "framework_version": None,
    "cuda_version": None,
    "python_version": None,
    "size_bytes": None,
    "visibility": "platform",
    "customer_id": None,
    "workspace_id": None,
    "starts_until": None,
    "deprecation_note": "",
    "max_lifetime_s": None,
    "created_at": AT,
}
USER = {
    "id": "u1",
    "username": "ada",
    "display_name": "Ada",
    "full_name": "",
    "email": None,
    "phone": None,
    "avatar_url": None,
    "role": "member",
    "status": "active",
    "customer_id": "c1",
    "customer_name": "lab",
    "password_change_required": False,
    "stop_environments_at": None,
    "created_at": AT,
}
TOKEN = {
    "id": "t1",
    "kind": "user",
    "name": "session",
    "scopes": ["all"],
    "created_at": AT,
    "expires_at": AT,
    "last_used_at": None,
}


def environment(**fields: object) -> dict[str, object]:
    return {
        "id": "env1",
        "name": "work",
        "display_name": "",
        "owner": "ada",
        "owner_id": "u1",
        "customer_id": "c1",
        "workspace_id": "w1",
        "status": "running",
        "reason": "ready",
        "message": "Ready.",
        "progress_percent": None,
        "queue_position": None,
        "wait": None,
        "priority": 5,
        "preemptible": False,
        "min_run_s": 0.0,
        "start_at": None,
        "reservation_id": None,
        "preempt_at": None,
        "generation": 1,
        "image": "base",
        "image_reference": "registry.example.org/base:1",
        "gpus": 0,
        "gpu_models": [],
        "gpu_memory_bytes": None,
        "min_gpu_memory_bytes": None,
        "max_gpu_memory_bytes": None,
        "mig_profile": None,
        "host_labels": {},
        "cpus": 1.0,
        "memory_bytes": 2**31,
        "env": {},
        "host_id": "h1",
        "host_name": "one",
        "allocated_gpus": [],
        "simulated": False,
        "address": "http://10.0.0.1:8888",
        "exit_code": None,
        "log_tail": None,
        "created_at": AT,
        "started_at": AT,
        "stopped_at": None,
        "stop_at": None,
        "max_lifetime_s": None,
        "idle": None,
        "idle_since": None,
        "stops_at": None,
        **fields,
    }


def page(*items: object, next_cursor: str | None = None) -> dict[str, object]:
    return {"items": list(items), "next_cursor": next_cursor}


def event(position: str, **fields: object) -> dict[str, object]:
    return {
        "id": position,
        "at": AT,
        "kind": "environment.status",
        "subject_type": "environment",
        "subject_id": "env1",
        "actor": "system",
        "reason": None,
        "message": "",
        "data": {},
        **fields,
    }
