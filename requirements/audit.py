"""Ask for known vulnerabilities of every pin: `make audit`. Arguments are handed on to pip-audit.

Ends with 1 where one is known. Where nobody can be asked, it says so and ends with 0: a build
machine without the internet is no reason to stop, and no proof either.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINS = ("handler/requirements.txt", "layers/sklearn/requirements.txt", "requirements/dev.txt")
PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes"]


def audited(pins: str, arguments: list[str]) -> bool:
    """Print what is known of one file's pins; False when something is."""
    command = [*PIP_AUDIT, "--format", "json", "--progress-spinner", "off", "-r", pins, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        print(f"audit: {pins}: left out: {said[-1]}")
        return True
    found = json.loads(done.stdout)["dependencies"]
    skipped = [each["skip_reason"] for each in found if "skip_reason" in each]
    known = [(each, flaw) for each in found for flaw in each.get("vulns", ())]
    print(f"audit: {pins}: {len(found) - len(skipped)} of {len(found)} pins were looked up")
    if skipped:
        print(f"audit: {pins}: left out: {skipped[0]}" + (", and others" if skipped[1:] else ""))
    for package, flaw in known:
        fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {flaw['id']}, mended in {fixed}")
    return not known


if __name__ == "__main__":
    well = [audited(pins, sys.argv[1:]) for pins in PINS]
    sys.exit(0 if all(well) else 1)
