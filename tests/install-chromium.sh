#!/bin/sh
# Installs Debian's Chromium and its driver for the tests, where that is possible; elsewhere those
# that look at pages in a browser are skipped.
set -u
missing=$(for p in chromium chromedriver; do command -v "$p" >/dev/null || printf '%s ' "$p"; done)
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests of pages in a browser will be skipped: no $missing and no right to install it" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q &&
    apt-get install -y -q --no-install-recommends chromium chromium-driver ||
    echo "tests of pages in a browser will be skipped: Chromium could not be installed" >&2
exit 0
