"""A federation of real processes on loopback: a SuperLink with TLS, SuperNodes with keys, and `flwr` to rule them."""

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fgrpo.engines.flower.init import init

PATIENCE = 600  # seconds; an idle machine needs a tenth of it
PEM = serialization.Encoding.PEM


def until(happens, what, patience=PATIENCE):
    """Wait for something that happens at last."""
    end = time.monotonic() + patience
    while not (value := happens()):
        assert time.monotonic() < end, f"it did not happen: {what()}"
        time.sleep(0.2)
    return value


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def certificate(name, key, issuer, issuer_key, is_ca):
    start = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=start,
        not_valid_after=start + datetime.timedelta(days=1),
    )
    builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if is_ca:
        signs = dict.fromkeys(("key_cert_sign", "crl_sign", "digital_signature"), True)
        others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        usage = x509.KeyUsage(**signs, **dict.fromkeys((*others, "encipher_only", "decipher_only"), False))
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM)


def make_certificates(folder):
    """Write a CA, and a key and a certificate of it for this machine."""
    ca, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("a CA", "a server"))
    private = serialization.PrivateFormat.TraditionalOpenSSL
    folder.mkdir()
    (folder / "ca.pem").write_bytes(certificate(issuer, ca, issuer, ca, True))
    (folder / "server.pem").write_bytes(certificate(subject, server, issuer, ca, False))
    (folder / "server.key").write_bytes(server.private_bytes(PEM, private, serialization.NoEncryption()))


def make_key(path):
    """Write a node's private key, and its public one beside it, as `ssh-keygen -t ecdsa -b 384` does."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public + b"\n")
    return path


def program(name):
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed"
    return found


class Deployment:
    """The processes of a federation, and their folder.

    Attributes:
        app: the folder that `fgrpo flower init` wrote.
        run: the folder of the run.
    """

    def __init__(self, folder, **keys):
        self.folder, self.app, self.run = folder, folder / "demo", folder / "run"
        self.port, self._processes, self._groups = free_port(), {}, []
        make_certificates(folder / "tls")
        init(self.app)
        (self.app / "simulation.yaml").unlink()
        self._home = folder / "flwr"
        self._home.mkdir()
        self._home.joinpath("config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{folder}/tls/ca.pem"\n'
        )
        root = str(Path(__file__).parents[3])
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PATH": os.pathsep.join([str(Path(program("flower-superexec")).parent), os.environ["PATH"]]),
            "NO_COLOR": "1",
        }
        self._keys = {"output_dir": str(self.run), **keys}

    def start(self, name, *command):
        """Start a process whose output goes to a file of its name."""
        log = self.log_file(name)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [program(command[0]), *command[1:]],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes[name] = process
        self._groups.append(process.pid)
        return process

    def log_file(self, name):
        return self.folder / "logs" / f"{name}.txt"

    def log(self, name):
        return self.log_file(name).read_text(errors="replace")

    def start_link(self):
        tls = self.folder / "tls"
        self.start(
            "link",
            *("flower-superlink", "--port", str(self.port), "--database", str(self.folder / "link.db")),
            *("--ssl-ca-certfile", str(tls / "ca.pem"), "--ssl-certfile", str(tls / "server.pem")),
            *("--ssl-keyfile", str(tls / "server.key"), "--enable-supernode-auth"),
            "--disable-runtime-dependency-installation",
        )
        until(lambda: self._answers(self.port), lambda: self.log("link"))

    def start_node(self, name, clients, *, key=None, tls=None):
        """Start a node with its file of clients; without another key, one that `register` is told of."""
        file = self.folder / "owners" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump({"clients": clients}))
        tls = tls or ["--root-certificates", str(self.folder / "tls" / "ca.pem")]
        key = key or self.folder / "keys" / name
        return self.start(
            name,
            *("flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()), *tls),
            *(["--auth-supernode-private-key", str(key)] if key.exists() else []),
            *("--node-config", f'clients="{file}"'),
        )

    def register(self, name):
        key = make_key(self.folder / "keys" / name)
        told = self.flwr("supernode", "register", str(key.with_suffix(".pub")), "here", "--name", name)
        assert told.returncode == 0, told.stdout + told.stderr

    def flwr(self, *arguments):
        return subprocess.run(
            [program("flwr"), *arguments], env=self.environment, cwd=self.folder, capture_output=True, text=True
        )

    def start_run(self, **keys):
        """Start the app, and return the run's number."""
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in {**self._keys, **keys}.items())
        told = self.flwr("run", str(self.app), "here", "--run-config", given, "--format", "json")
        assert told.returncode == 0, told.stdout + told.stderr
        return json.loads(told.stdout)["run-id"]

    def rounds(self):
        """The whole rounds on disk."""
        return sorted(int(path.name) for path in (self.run / "rounds").glob("[0-9]*"))

    def finish(self, rounds):
        """Wait until the run is over."""
        until(lambda: (self.run / "report").is_dir() and self.rounds()[-1] == rounds, lambda: self.log("link"))

    def kill(self, name, how=signal.SIGKILL):
        """Kill one process, as nobody is asked; what it started sees to itself."""
        process = self._processes.pop(name)
        process.send_signal(how)
        process.wait(PATIENCE)

    def signal(self, name, number):
        """Stop or continue a process and all that it started."""
        os.killpg(self._processes[name].pid, number)

    def has_ended(self, name):
        return self._processes[name].poll() is not None

    def close(self):
        for group in self._groups:  # also of those that were killed: what they started may be there yet
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()

    @staticmethod
    def _answers(port):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False
