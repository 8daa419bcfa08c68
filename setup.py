"""The C extension; everything else about the package is in pyproject.toml.

Kernel files are compiled once per instruction set, each with its own flags, so that one wheel runs on any
x86-64 and picks its kernels when it starts. Environment: BEYONDVL_TESTS=1 (tests and benchmarks reach single kernels),
BEYONDVL_SANITIZE=1 (ASan + UBSan), BEYONDVL_DEBUG=1, BEYONDVL_WERROR=1, BEYONDVL_EMULATE=1 (to test the levels amx and
avx_vnni on other machines with AVX-512: tiles in C, AVX-512's encoding), BEYONDVL_LEVELS="base avx2" (no others are
built), BEYONDVL_STB_UNSAFE=1 (accept a stb_image header older than 2.30).
"""

import os
import platform
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine() in ("x86_64", "AMD64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512vnni", "-mavx512bf16"]
# level -> (flags, an intrinsic that only a compiler with that level accepts)
ISAS = {
    "base": ([], ""),
    "avx2": (AVX2, "__m256 f(__m256 a){return _mm256_fmadd_ps(a,a,a);}"),
    "avx_vnni": ([*AVX2, "-mavxvnni"], "__m256i f(__m256i a){return _mm256_dpbusd_avx_epi32(a,a,a);}"),
    "avx512": (AVX512, "__m512 f(__m512 a){return _mm512_scalef_ps(a,a);}"),
    "avx512_vnni": ([*AVX512, "-mavx512vnni"], "__m512i f(__m512i a){return _mm512_dpbusd_epi32(a,a,a);}"),
    "avx512_bf16": (AVX512_BF16, "__m256bh f(__m512 a){return _mm512_cvtneps_pbh(a);}"),
    "amx": (
        [*AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8", "-DBVL_LEVEL_AMX"],
        "void f(void){_tile_dpbf16ps(0,1,2);_tile_dpbsud(0,1,2);}",
    ),
}
PER_ISA = [f"csrc/kernels/{name}.c" for name in ("kernels", "gemm", "pack", "resample", "scan", "spectrum")]
HEADERS = [str(p) for p in Path("csrc").rglob("*.h")]
SOURCES = sorted(str(p) for p in Path("csrc").rglob("*.c") if str(p) not in PER_ISA)
FLAGS = [
    "-std=c11",
    "-O3",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-overflow",  # as most Pythons have it; without, gcc 12 spills two sums of the largest tiles
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wstrict-prototypes",
    "-Werror=missing-prototypes",
    "-Werror=vla",
]
LOOPS = ["-falign-loops=64"]  # of kernels: across lines of code, the loop of a product takes 4 to 8 % longer on Zen 3
LINK = ["-fopenmp", "-ldl", "-lm", "-lpthread", "-Wl,-z,relro,-z,now"]


def flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


if flag("BEYONDVL_SANITIZE"):
    FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fstrict-overflow", "-O1"]
    LINK += ["-fsanitize=address,undefined"]
FLAGS += ["-g" if flag("BEYONDVL_DEBUG") or flag("BEYONDVL_SANITIZE") else "-g0"]
if flag("BEYONDVL_EMULATE"):
    FLAGS += ["-DBVL_EMULATED"]
    evex = [*AVX2, "-mavx512vl", "-mavx512vnni", "-mno-avx512dq", "-D__AVXVNNI__"]
    ISAS["avx_vnni"] = (evex, "__m256i f(__m256i a){return _mm256_dpbusd_epi32(a,a,a);}")
if flag("BEYONDVL_TESTS"):
    FLAGS += ["-DBVL_TESTS"]
if flag("BEYONDVL_WERROR"):
    FLAGS += ["-Werror"]


def stb_macros() -> list[tuple[str, str]]:
    """Macros for stb_image when the system has its header; one older than 2.30 lacks security fixes."""
    header = Path("/usr/include/stb/stb_image.h")
    found = (
        re.search(r"stb_image - v(\d+)\.(\d+)", header.read_text("utf-8", "replace")[:200]) if header.exists() else None
    )
    if not found:
        return []
    version = (int(found[1]), int(found[2]))
    if version < (2, 30) and not flag("BEYONDVL_STB_UNSAFE"):
        print(f"stb_image {version[0]}.{version[1]} is older than 2.30: left out (BEYONDVL_STB_UNSAFE=1 takes it)")
        return []
    return [("BVL_HAVE_STB", "1"), ("BVL_STB_VERSION", f'"{version[0]}.{version[1]}"')]


class BuildExt(build_ext):
    def build_extension(self, ext):
        wanted = os.environ.get("BEYONDVL_LEVELS", " ".join(ISAS)).split()
        isas = [isa for isa in ISAS if isa == "base" or (X86 and isa in wanted and self.compiles(isa))]
        ext.define_macros += [("BVL_LEVELS", " ".join(f"LEVEL({isa}, {isa.upper()})" for isa in isas))]
        common = [("Py_LIMITED_API", "0x030b0000")]

        def compile_isa(isa):
            macros = [("BVL_ISA", isa), ("BVL_ISA_CODE", f"BVL_ISA_{isa.upper()}")]
            return self.compiler.compile(
                PER_ISA,
                output_dir=f"{self.build_temp}/{isa}",
                macros=macros,
                extra_postargs=FLAGS + ISAS[isa][0] + LOOPS,
            )

        def compile_one(source):
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=common + ext.define_macros,
                include_dirs=[*ext.include_dirs, *self.compiler.include_dirs],
                extra_postargs=FLAGS,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = list(pool.map(compile_isa, isas)) + list(pool.map(compile_one, SOURCES))
        ext.sources, ext.extra_objects = [], [o for part in parts for o in part]
        self.force = True  # the objects above are not among the sources a time stamp is compared with
        super().build_extension(ext)
        self.copy_openblas(Path(self.get_ext_fullpath(ext.name)).parent / "_libs")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        self.copy_openblas(Path("beyondvl/_libs"))

    def compiles(self, isa: str) -> bool:
        """Whether the compiler knows the level: calls one of its intrinsics."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.c"
            probe.write_text(f"#include <immintrin.h>\n{ISAS[isa][1]}")
            try:
                self.compiler.compile([str(probe)], output_dir=folder, extra_postargs=ISAS[isa][0])
            except Exception:
                print(f"the compiler lacks {isa}: left out")
                return False
        return True

    def copy_openblas(self, folder: Path) -> None:
        """The library goes beside the extension: a build-time environment does not outlive the build."""
        import scipy_openblas32

        folder.mkdir(parents=True, exist_ok=True)
        for library in Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas.so*"):
            shutil.copy2(library, folder / "libscipy_openblas.so")
        licence = next(
            Path(scipy_openblas32.__file__).parent.parent.glob("scipy_openblas32-*.dist-info/**/LICENSE*"), None
        )
        if licence:
            shutil.copy2(licence, folder / "LICENSE.openblas.txt")


setup(
    ext_modules=[
        Extension(
            "beyondvl._C",
            sources=SOURCES,
            depends=HEADERS + PER_ISA,
            include_dirs=[numpy.get_include()],
            define_macros=stb_macros(),
            extra_link_args=LINK,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
