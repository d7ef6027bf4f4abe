"""Proof that nginx and Caddy, with the snippets of docs/operation.md, pass on who asks and by what address.

Run with `pytest -m proof tests/proofs/test_proxies.py`. The client is 127.0.0.2, so that its address is not the proxy's.
"""

import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from contextlib import closing, suppress

import pytest
from conftest import Answer, wait_for
from manual import snippets

import ticketapi

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(sys.platform != "linux", reason="a client with an address of its own, 127.0.0.2, is Linux's alone"),
]
PAGE, TITLE = "operation.md", "Behind a proxy"
NAME, CLIENT, PROXY = "desk.example.com", "127.0.0.2", "127.0.0.1"
PATH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian has nginx, and not all users look
TRUST = ("--trusted-proxy", PROXY)
HEADER = re.compile(r" +proxy_set_header (\S+) .*\n")
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""
CADDY = """
{{
    admin off
    local_certs
    skip_install_trust
    auto_https disable_redirects
    storage file_system {folder}
}}
{site}
"""


def need(*programs):
    """Skip where a program is missing."""
    for program in programs:
        if not shutil.which(program, path=PATH):
            pytest.skip(f"needs {program}: apt-get install nginx-light caddy openssl")


def free_port():
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as sock:
        sock.bind((PROXY, 0))
        return sock.getsockname()[1]


class Client:
    """A client of the proxy that takes any certificate and knows the proxy by its public name."""

    def __init__(self, port):
        """Remember where the proxy listens."""
        self.port, self.address = port, CLIENT
        self.context = ssl.create_default_context()
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def connect(self):
        """Return a connection to the proxy, encrypted for its public name."""
        plain = socket.create_connection((PROXY, self.port), timeout=10, source_address=(self.address, 0))
        return self.context.wrap_socket(plain, server_hostname=NAME)

    def get(self, path, **headers):
        """Send a request."""
        connection = http.client.HTTPConnection(NAME)
        with closing(self.connect()) as connection.sock:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())

    def answers(self):
        """Tell whether the proxy is there, and the server behind it."""
        with suppress(OSError):
            return self.get("/up").status == 200


def nginx(folder, snippet, port, served):
    """Return the command that runs the snippet of the page in nginx, with a certificate."""
    need("nginx", "openssl")
    key, certificate = folder / "desk.key", folder / "desk.pem"
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        f"/CN={NAME}",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run(new, check=True, capture_output=True)
    site = snippet.replace("/etc/ssl/certs/desk.pem", str(certificate)).replace("/etc/ssl/private/desk.key", str(key))
    site = site.replace("listen 443", f"listen {PROXY}:{port}").replace("http://127.0.0.1:8000", served.url)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, site=site))
    return ["nginx", "-p", folder, "-c", folder / "nginx.conf"]


def caddy(folder, snippet, port, served):
    """Return the command that runs the snippet of the page in Caddy, which makes a certificate of its own."""
    need("caddy")
    site = snippet.replace("127.0.0.1:8000", f"{PROXY}:{served.port}")
    site = site.replace(f"{NAME} {{", f"https://{NAME}:{port} {{\n    bind {PROXY}")
    (folder / "Caddyfile").write_text(CADDY.format(folder=folder, site=site))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]


PROXIES = {"nginx": nginx, "caddyfile": caddy}


@pytest.fixture
def proxy(tmp_path):
    """Return a function that starts a proxy before a server, and gives a client of it."""
    started = []

    def start(language, served, edit=lambda snippet: snippet):
        folder, port = tmp_path / language, free_port()
        folder.mkdir()
        [snippet] = snippets(PAGE, TITLE, language)
        command = PROXIES[language](folder, edit(snippet), port, served)
        environ = {"PATH": PATH, "HOME": str(folder)}
        log = (folder / "log").open("w")
        started.append((subprocess.Popen(command, stdout=log, stderr=log, env=environ), log))
        client = Client(port)
        wait_for(client.answers)
        return client

    yield start
    for process, log in started:
        process.terminate()
        process.wait(timeout=20)
        log.close()


@pytest.fixture
def token(tmp_path):
    """The text of a token for the desk of the server, with enough tickets for two pages."""
    with closing(ticketapi.open_database(tmp_path / "ticketapi.db", "desk")) as db:
        now = ticketapi.wall_microseconds()
        ticketapi.generate_tickets(db, 60, now, seed=7)
        return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["read:tickets"], 0, now)["token"]


def seen(client, token, folder, **headers):
    """Return where the next page lies, and which address the audit log has."""
    answer = client.get("/api/tickets/open", Authorization=f"Bearer {token}", **headers)
    assert answer.status == 200, answer.body
    with closing(ticketapi.connect(folder / "ticketapi-audit.db")) as db:
        [address] = db.execute("SELECT ip_address FROM api_audits ORDER BY id DESC LIMIT 1").fetchone()
    return answer.json["links"]["next"].partition("/api")[0], address


@pytest.mark.parametrize("language", PROXIES)
def test_with_the_snippet_links_and_audit_log_name_the_real_host_scheme_and_client(language, serve, proxy, token, tmp_path):
    client = proxy(language, serve("--no-scheduler", *TRUST))
    assert seen(client, token, tmp_path) == (f"https://{NAME}", CLIENT)


@pytest.mark.parametrize("language", PROXIES)
def test_a_client_cannot_choose_its_address(language, serve, proxy, token, tmp_path):
    client = proxy(language, serve("--no-scheduler", *TRUST))
    lies = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    assert seen(client, token, tmp_path, **lies) == (f"https://{NAME}", CLIENT)


@pytest.mark.parametrize("trust", [TRUST, ()], ids=["trusted", "not trusted"])
@pytest.mark.parametrize("language", PROXIES)
def test_metrics_ask_the_clients_of_the_proxy_for_a_token(language, trust, serve, proxy):
    served = serve("--no-scheduler", *trust)
    assert proxy(language, served).get("/metrics").status == 401
    assert served.get("/metrics").status == 200


# Without -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", PROXIES)
def test_without_trust_links_lose_the_scheme_and_all_clients_are_the_proxy(language, serve, proxy, token, tmp_path):
    client = proxy(language, serve("--no-scheduler"))
    assert seen(client, token, tmp_path) == (f"http://{NAME}", PROXY)
    wrong = [client.get("/api/stats", Authorization="Bearer wrong").status for _ in range(ticketapi.STRANGERS_RATE + 1)]
    assert wrong[-1] == 429
    client.address = "127.0.0.3"  # another client, and yet shut out
    assert client.get("/api/stats", Authorization="Bearer wrong").status == 429


def without(*names):
    """Return how to take headers out of the snippet for nginx."""
    return lambda snippet: HEADER.sub(lambda line: "" if line[1] in names else line[0], snippet)


@pytest.mark.parametrize(
    ("dropped", "host", "address"),
    [
        (("Host", "X-Forwarded-Host"), "https://{server}", CLIENT),
        (("X-Forwarded-Proto",), f"http://{NAME}", CLIENT),
        (("X-Forwarded-For",), f"https://{NAME}", PROXY),
        (("Host", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-For"), "http://{server}", PROXY),
    ],
    ids=["host", "scheme", "address", "all"],
)
def test_without_a_header_of_the_snippet_nginx_passes_on_less(dropped, host, address, serve, proxy, token, tmp_path):
    served = serve("--no-scheduler", *TRUST)
    client = proxy("nginx", served, without(*dropped))
    assert seen(client, token, tmp_path) == (host.format(server=f"{PROXY}:{served.port}"), address)


def test_metrics_are_open_to_the_clients_of_a_proxy_that_sets_no_header(serve, proxy):
    names = HEADER.findall(snippets(PAGE, TITLE, "nginx")[0])
    assert names == ["Host", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-For"]
    assert proxy("nginx", serve("--no-scheduler", *TRUST), without(*names)).get("/metrics").status == 200


def test_the_page_names_the_variable_that_the_server_is_started_with_here():
    assert f"TICKETAPI_TRUSTED_PROXY={PROXY}" in snippets(PAGE, TITLE, "sh")[0]
