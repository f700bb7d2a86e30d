#!/bin/sh
# fuzz.sh PYTHON SECONDS
# Compiles the scanner's sources with ASan and UBSan, by the system's g++ (zig brings no ASan), and gives it token soup and
# broken pages for so long. Fails on the first error that these find.
set -eu
cd "$(dirname "$0")/.."
python=$1 seconds=$2 work=.cache/scanner/sanitized

molecule/prerequisites g++
"$python" scanner/build.py --sources "$work"
for source in scanner ada; do
  g++ -std=c++20 -O1 -g -fPIC -fsanitize=address,undefined -fno-sanitize-recover=undefined -D_GLIBCXX_ASSERTIONS \
    -c "$work/$source.cpp" -o "$work/$source.o"
done
g++ -shared -fsanitize=address,undefined "$work/scanner.o" "$work/ada.o" -o "$work/scanner.so"

# Python is not compiled so: what the sanitizers need is loaded before all else, and what Python keeps is no leak.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 CRAWLER_SCANNER=$work/scanner.so \
  "$python" tests/unit/worker/soup.py --broken "$seconds"
