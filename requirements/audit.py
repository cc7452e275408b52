"""Ask for known vulnerabilities of every pin: `make audit`. Arguments are handed on to pip-audit.

Ends with 1 where one is known, or where the question itself went wrong. Where nobody can be asked,
it says so and ends with 0, for a machine without the internet is no reason to stop, and no proof
either; with AUDIT=strict in the environment it ends with 1.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The peers that tests and benchmarks run beside ours, as their users have them: nothing that is
# deployed, or makes what is deployed, comes from these.
PEERS = {"clients.txt", "mlserver.txt"}
PINS = [
    ROOT / "handler" / "requirements.txt",
    ROOT / "layers" / "sklearn" / "requirements.txt",
    *sorted(each for each in ROOT.glob("requirements/*.txt") if each.name not in PEERS),
]
PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes"]
NOBODY = re.compile(r"ConnectionError|ConnectTimeout|ReadTimeout|Failed to resolve|ProxyError")


def audited(pins: Path, arguments: list[str]) -> bool:
    """Print what is known of one file's pins; False when that must stop whoever asks."""
    name = pins.relative_to(ROOT)
    command = [*PIP_AUDIT, "--format", "json", "--progress-spinner", "off", "-r", str(pins)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if not done.stdout:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        if NOBODY.search(done.stderr):
            return left_out(f"{name}: left out, nobody can be asked: {said}")
        print(f"audit: {name}: could not be audited: {said}")
        return False
    found = json.loads(done.stdout)["dependencies"]
    skipped = [each["skip_reason"] for each in found if "skip_reason" in each]
    known = [(each, flaw) for each in found for flaw in each.get("vulns", ())]
    print(f"audit: {name}: {len(found) - len(skipped)} of {len(found)} pins were looked up")
    for package, flaw in known:
        fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {flaw['id']}, mended in {fixed}")
    if skipped and len(skipped) == len(found):
        return left_out(f"{name}: left out, the registry knows of no vulnerabilities: {skipped[0]}")
    for reason in skipped:
        print(f"audit: {name}: could not be audited: {reason}")
    return not known and not skipped


def left_out(reason: str) -> bool:
    """Say why; whether that will do."""
    print(f"audit: {reason}")
    return os.environ.get("AUDIT") != "strict"


if __name__ == "__main__":
    well = [audited(pins, sys.argv[1:]) for pins in PINS]
    sys.exit(0 if all(well) else 1)
