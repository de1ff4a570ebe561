"""A stand-in of the Hugging Face hub on loopback: what of its HTTP interface ``huggingface_hub`` asks for here.

Downloads with ranges, the errors with their codes, private repositories, and pushing: create, preupload, LFS, commit.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories, and what was asked.

    Attributes:
        commits: repository -> revision -> {file: bytes}; a branch and its commit are two revisions.
        private: repositories that want ``token``.
        cut: how many of the next downloads break off in the middle; ``resumable`` False, they send nothing at all.
        lfs: files of this ending are taken by LFS, not in the commit.
        asked: (method, path) of what was asked of repositories.
    """

    token = "hf_of_the_stand_in"

    def __init__(self):
        self.commits, self.private, self.asked, self.blobs = {}, set(), [], {}
        self.cut, self.resumable, self.lfs = 0, True, None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, repository, files, branch="main", keep=False):
        """A commit; returns its number."""
        revisions = self.commits.setdefault(repository, {})
        files = {**(revisions.get(branch, {}) if keep else {}), **files}
        number = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        revisions[branch] = revisions[number] = files
        return number

    def put_folder(self, repository, folder, **options):
        return self.put(repository, {file.name: file.read_bytes() for file in folder.iterdir()}, **options)

    def number_of(self, repository, revision):
        files = self.commits[repository][revision]
        return next(name for name, its in self.commits[repository].items() if its is files and len(name) == 40)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *words):
        pass

    def answer(self, status=200, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.answer(status, X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.hub
        found = re.fullmatch(r"/api/models/([^/]+/[^/?]+)", self.path)
        if found is not None and found.group(1) in hub.commits:
            hub.asked.append((self.command, self.path))
            return self.answer(200, {"id": found.group(1), "private": found.group(1) in hub.private})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/?]+)", self.path)
        if found is None:
            return self.answer(404)
        hub.asked.append((self.command, self.path))
        repository, revision, file = found.groups()
        revision = revision.replace("%2F", "/")
        if repository in hub.private and self.headers.get("authorization") != f"Bearer {hub.token}":
            return self.refuse(401, "RepoNotFound")
        if repository not in hub.commits:
            return self.refuse(404, "RepoNotFound")
        if revision not in hub.commits[repository]:
            return self.refuse(404, "RevisionNotFound")
        number = hub.number_of(repository, revision)
        if file not in hub.commits[repository][revision]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=number)
        data = hub.commits[repository][revision][file]
        known = {"X_Repo_Commit": number, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked.group(1)) if asked else 0
        if asked:
            known["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and hub.cut > 0:
            hub.cut -= 1
            self.send_response(206 if asked else 200)
            for name, value in {**known, "Content-Length": len(data) - first}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(data[first : first + len(data) // 2] if hub.resumable else b"")
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(206 if asked else 200, data[first:], **known)

    def do_PUT(self):
        self.hub.asked.append((self.command, self.path))
        self.hub.blobs[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def do_POST(self):
        hub = self.hub
        hub.asked.append((self.command, self.path))
        body = self.read_body()
        if self.path.startswith("/api/validate-yaml"):
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("authorization") != f"Bearer {hub.token}":
            return self.refuse(401, "Unauthorized")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in hub.commits:
                return self.answer(409, {"error": "It is there already", "url": f"{hub.url}/{name}"})
            hub.put(name, {".gitattributes": b""})
            if wanted.get("visibility") == "private" or wanted.get("private"):
                hub.private.add(name)
            return self.answer(200, {"url": f"{hub.url}/{name}"})
        found = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path)
        if found is not None:
            objects = json.loads(body)["objects"]
            each = [{**its, "actions": {"upload": {"href": f"{hub.url}/blobs/{its['oid']}"}}} for its in objects]
            return self.answer(200, {"transfer": "basic", "objects": each})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/?]+)(?:\?.*)?", self.path)
        if found is None:
            return self.answer(404)
        repository, what, branch = found.groups()
        if branch not in hub.commits[repository]:
            return self.refuse(404, "RevisionNotFound")
        if what == "preupload":
            files = [
                {"path": its["path"], "shouldIgnore": False, "uploadMode": self.mode_of(its["path"])}
                for its in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
        number = hub.put(repository, files, branch, keep=True)
        hub.message = lines[0]["value"]["summary"]
        url = f"{hub.url}/{repository}/commit/{number}"
        return self.answer(200, {"commitUrl": url, "commitOid": number, "pullRequestUrl": None})

    def mode_of(self, path):
        return "lfs" if self.hub.lfs and path.endswith(self.hub.lfs) else "regular"

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while True:
            size = int(self.rfile.readline(), 16)
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if not size:
                return b"".join(parts)
