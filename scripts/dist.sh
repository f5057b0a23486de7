#!/usr/bin/env bash
# Build and check dist/ (sdist and wheel) and build/sbom.cdx.json (the packages of an installation).
# With TAG=v1.2.3: fail if the version differs or CHANGELOG.md has no section for it.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.cache/release-venv
installed=.cache/dist-venv
python=$(command -v python3.11 || command -v python3)

# 1. Install the tools in a separate environment, so that the SBOM excludes their dependencies.
if [ ! -e "$tools/.complete" ]; then
  "$python" -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check 'build==1.6.1' 'twine==7.0.0' 'cyclonedx-bom==7.5.0'
  touch "$tools/.complete"
fi

# 2. Build. The wheel is built from the sdist, which proves the sdist complete.
rm -rf dist build
mkdir build
"$tools/bin/python" -m build --outdir dist . > build/build.log || { cat build/build.log >&2; exit 1; }
"$tools/bin/twine" check --strict dist/* > build/twine.log || { cat build/twine.log >&2; exit 1; }

# 3. Install the wheel as a user would, and check its version.
rm -rf "$installed"
"$python" -m venv --without-pip "$installed"
"$tools/bin/pip" --python "$installed/bin/python" install --quiet --disable-pip-version-check dist/*.whl
version=$(cd / && "$OLDPWD/$installed/bin/stepflow" --version)
if [ -n "${TAG:-}" ]; then
  [ "$version" = "stepflow ${TAG#v}" ] || { echo "dist: the wheel is $version, but the tag is $TAG" >&2; exit 1; }
  grep -qF "## [${TAG#v}]" CHANGELOG.md || { echo "dist: CHANGELOG.md has no section [${TAG#v}]" >&2; exit 1; }
fi

# 4. Write the SBOM of the installation.
"$tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible \
  --output-file build/sbom.cdx.json "$installed/bin/python" 2> build/sbom.log || { cat build/sbom.log >&2; exit 1; }
echo "dist: $version"
ls dist/* build/sbom.cdx.json
