"""A stand-in for the Hub: as much of its protocol as pushing and loading a model needs, with everything in memory."""

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGEST_REGULAR = 10_000_000
"""Bytes above which the Hub takes a file only as LFS object."""
REPO = r"(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("GET", rf"/api/models/{REPO}(/revision/{REVISION})?", "info"),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(/(?P<folder>.+))?", "tree"),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", "commit"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", rf"/{REPO}\.git/info/lfs/verify", "lfs_verify"),
    ("PUT", r"/signed/(?P<signature>[^/]+)/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?", "lfs_put"),
    ("POST", r"/signed/(?P<signature>[^/]+)/(?P<oid>[0-9a-f]{64})", "lfs_complete"),
    ("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
)
SIGNED = ("lfs_put", "lfs_complete")
"""What needs no token, because the address itself is secret."""


@dataclass
class Request:
    """What a client asks."""

    method: str
    path: str
    query: dict[str, str]
    token: str | None
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What the server replies."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer with an error, and the code by which `huggingface_hub` tells errors apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any):
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer(status, json.dumps({"error": message} | content).encode(), headers)


def git_oid(content: bytes) -> str:
    """Git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(sample: bytes, size: int) -> bool:
    """Whether the Hub wants a file as LFS object: binary or big."""
    return b"\0" in sample[:512] or size > LARGEST_REGULAR


def file_oid(content: bytes) -> str:
    """The hash by which a client finds out that a file has not changed."""
    return hashlib.sha256(content).hexdigest() if is_large(content, len(content)) else git_oid(content)


class HubServer:
    """Context manager: a Hub for models with one user.

    Args:
        token: the only one that is let in.
        user: whose token it is.
        part_size: LFS objects above this many bytes are asked for in parts; by default none.

    Attributes:
        repos: repo id -> {"private": bool, "commits": [{"message", "oid", "paths"}], "files": {path: bytes},
            "branches": {name: (oid, files)}}; commits and files are those of the branch main.
        requests: (method, path, status) of everything that was asked.
        unexpected: "METHOD path" of what this server does not know.
        refuse: pattern of commit messages that are answered with 403; by default none.
    """

    def __init__(self, token: str = "hf_good_token", user: str = "someone", part_size: int | None = None):
        self.token = token
        self.user = user
        self.part_size = part_size
        self.repos: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.unexpected: list[str] = []
        self.refuse: str | None = None
        self._objects: dict[str, bytes] = {}
        self._parts: dict[str, dict[int, bytes]] = {}
        self._signature = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self, **more: str) -> dict[str, str]:
        """Variables under which `huggingface_hub` in another process talks to this server."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **more,
        }

    # -- dispatch ----------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Finds the route of a request, and lets it answer."""
        method = "GET" if request.method == "HEAD" else request.method
        with self._lock:
            try:
                for known, pattern, name in ROUTES:
                    found = re.fullmatch(pattern, request.path)
                    if found and known == method:
                        answer = self._let_in(
                            request, name, {k: v and unquote(v) for k, v in found.groupdict().items()}
                        )
                        break
                else:
                    self.unexpected.append(f"{request.method} {request.path}")
                    raise Refusal(404, "Not Found")
            except Refusal as refusal:
                answer = refusal.answer
            self.requests.append((request.method, request.path, answer.status))
            return answer

    def _let_in(self, request: Request, name: str, values: dict[str, str | None]) -> Answer:
        if name in SIGNED:
            if values.pop("signature") != self._signature:
                raise Refusal(403, "Invalid signature")
        elif request.token != self.token:
            raise Refusal(401, "Invalid credentials in Authorization header")
        answer = getattr(self, f"_{name}")(request, **values)
        return answer if isinstance(answer, Answer) else Answer(body=json.dumps(answer).encode())

    def _repo(self, repo_id: str, revision: str | None = None) -> dict[str, Any]:
        if repo_id not in self.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        repo = self.repos[repo_id]
        if revision not in (None, "main", repo["commits"][-1]["oid"]):
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo

    def _state(self, repo_id: str, revision: str | None = None) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a revision: a branch or a commit."""
        for name, (oid, files) in self._repo(repo_id)["branches"].items():
            if revision in (name, oid):
                return oid, files
        repo = self._repo(repo_id, revision)
        return repo["commits"][-1]["oid"], repo["files"]

    def put(self, repo_id: str, folder: Path, branch: str = "main") -> str:
        """Lets a branch hold what a folder holds, in a repository that need not exist yet; its commit."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        repo = self.repos.setdefault(repo_id, {"private": False, "commits": [], "files": {}, "branches": {}})
        if branch == "main":
            return self._add_commit(repo_id, "put", files)
        oid = hashlib.sha1(f"{repo_id} {branch}".encode()).hexdigest()
        repo["branches"][branch] = (oid, files)
        return oid

    # -- users and repositories --------------------------------------------------------------------------------------

    def _whoami(self, request: Request) -> dict:
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}}

    def _create(self, request: Request) -> dict:
        wanted = request.json()
        owner = wanted.get("organization") or self.user
        repo_id = f"{owner}/{wanted['name']}"
        if owner != self.user:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if repo_id in self.repos:
            url = f"{self.endpoint}/{repo_id}"
            raise Refusal(409, "You already created this model repo", url=url, name=repo_id)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.repos[repo_id] = {"private": private, "commits": [], "files": {}, "branches": {}}
        self._add_commit(repo_id, "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return {"url": f"{self.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}

    def _add_commit(self, repo_id: str, message: str, added: dict[str, bytes]) -> str:
        repo = self.repos[repo_id]
        repo["files"].update(added)
        oid = hashlib.sha1(f"{repo_id} {len(repo['commits'])}".encode()).hexdigest()
        repo["commits"].append({"message": message, "oid": oid, "paths": sorted(added)})
        return oid

    def _validate_card(self, request: Request) -> dict:
        block = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", request.json()["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(block[1]) if block else {}
        except yaml.YAMLError as error:
            raise Refusal(400, "Invalid metadata", errors=[{"message": str(error)}], warnings=[]) from error
        return {"errors": [], "warnings": [] if metadata else [{"message": "empty or missing yaml metadata"}]}

    def _info(self, request: Request, repo_id: str, revision: str | None) -> dict:
        oid, files = self._state(repo_id, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        common = {"id": repo_id, "modelId": repo_id, "private": self.repos[repo_id]["private"], "tags": []}
        return common | {"sha": oid, "siblings": siblings}

    def _tree(self, request: Request, repo_id: str, revision: str, folder: str | None) -> Answer:
        _, files = self._state(repo_id, revision)
        start = f"{folder}/" if folder else ""
        below = [path for path in sorted(files) if path.startswith(start)]
        if folder and not below:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        deep = request.query.get("recursive", "").lower() in ("true", "1")
        folders = {start + name for path in below for name in _parents(path[len(start) :]) if deep or "/" not in name}
        entries = [{"type": "directory", "path": name, "oid": git_oid(name.encode())} for name in sorted(folders)]
        entries += [_entry(path, files[path]) for path in below if deep or "/" not in path[len(start) :]]
        return Answer(body=json.dumps(entries).encode())

    # -- uploads -----------------------------------------------------------------------------------------------------

    def _preupload(self, request: Request, repo_id: str, revision: str) -> dict:
        files = self._repo(repo_id, revision)["files"]
        modes = []
        for file in request.json()["files"]:
            path, stored = file["path"], files.get(file["path"])
            mode = "lfs" if is_large(base64.b64decode(file["sample"]), file["size"]) else "regular"
            known = {} if stored is None else {"oid": file_oid(stored)}
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
        return {"files": modes}

    def _lfs_batch(self, request: Request, repo_id: str) -> dict:
        self._repo(repo_id)
        wanted = request.json()
        if wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256":
            raise Refusal(400, "Only uploads by SHA-256")
        return {"transfer": "basic", "objects": [self._instructions(repo_id, item) for item in wanted["objects"]]}

    def _instructions(self, repo_id: str, item: dict) -> dict:
        oid, size = item["oid"], item["size"]
        if oid in self._objects:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": f"{self.endpoint}/signed/{self._signature}/{oid}"}
        if self.part_size is not None and size > self.part_size:
            numbers = range(1, -(-size // self.part_size) + 1)
            parts = {f"{number:05d}": f"{upload['href']}/{number}" for number in numbers}
            upload["header"] = {"chunk_size": str(self.part_size)} | parts
        verify = {"href": f"{self.endpoint}/{repo_id}.git/info/lfs/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def _lfs_put(self, request: Request, oid: str, part: str | None) -> Answer:
        if part is None:
            self._keep(oid, request.body)
        else:
            self._parts.setdefault(oid, {})[int(part)] = request.body
        return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def _lfs_complete(self, request: Request, oid: str) -> dict:
        stored = self._parts.pop(oid, {})
        named = {part["partNumber"]: part["etag"].strip('"') for part in request.json()["parts"]}
        if named != {number: hashlib.md5(content).hexdigest() for number, content in stored.items()}:
            raise Refusal(400, "The parts named are not those uploaded")
        self._keep(oid, b"".join(stored[number] for number in sorted(stored)))
        return {}

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"The content does not have the SHA-256 {oid}")
        self._objects[oid] = content

    def _lfs_verify(self, request: Request, repo_id: str) -> dict:
        wanted = request.json()
        if len(self._objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "No such object")
        return {}

    def _commit(self, request: Request, repo_id: str, revision: str) -> dict:
        repo = self._repo(repo_id, revision)
        lines = [json.loads(line) for line in request.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if self.refuse is not None and re.search(self.refuse, header["summary"]):
            raise Refusal(403, "This repository is read-only")
        if header.get("parentCommit") not in (None, repo["commits"][-1]["oid"]):
            raise Refusal(412, "The branch has moved")
        added, removed = self._changes(lines)
        for path in [path for path in repo["files"] if removed & {path, *(f"{name}/" for name in _parents(path))}]:
            del repo["files"][path]
        oid = self._add_commit(repo_id, header["summary"], added)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{oid}"}

    def _changes(self, lines: list[dict]) -> tuple[dict[str, bytes], set[str]]:
        """Files that a commit adds, and paths (of folders: with a slash) that it removes."""
        added: dict[str, bytes] = {}
        removed: set[str] = set()
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    continue
                case "file":
                    added[value["path"]] = base64.b64decode(value["content"], validate=True)
                case "lfsFile" if value["oid"] in self._objects:
                    added[value["path"]] = self._objects[value["oid"]]
                case "lfsFile":
                    raise Refusal(400, f"{value['path']}: its LFS object was not uploaded")
                case "deletedFile" | "deletedFolder":
                    removed.add(value["path"])
                case other:
                    raise Refusal(400, f"Unknown operation {other}")
        return added, removed

    # -- downloads ---------------------------------------------------------------------------------------------------

    def _resolve(self, request: Request, repo_id: str, revision: str, path: str) -> Answer:
        commit, files = self._state(repo_id, revision)
        if path not in files:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.answer.headers["X-Repo-Commit"] = commit
            raise refusal
        content = files[path]
        headers = {"ETag": f'"{file_oid(content)}"', "X-Repo-Commit": commit}
        return Answer(body=content, headers=headers | {"Content-Type": "application/octet-stream"})


def _parents(path: str) -> list[str]:
    """Folders above a file: "a/b/c" -> ["a", "a/b"]."""
    names = path.split("/")[:-1]
    return ["/".join(names[: number + 1]) for number in range(len(names))]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as a listing shows it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_large(content, len(content)):
        entry["lfs"] = {"oid": file_oid(content), "size": len(content), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    """HTTP for a `HubServer`."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _handle(self) -> None:
        url = urlsplit(self.path)
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        answer = self.hub.answer(
            Request(self.command, url.path, query, token if kind == "Bearer" else None, self._body())
        )
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""
