//! Products of tiles on a CPU with AMX: a unit with eight registers of 16 × 64 bytes (Intel SDM, volume 1, chapter 18).
//!
//! `tdpbf16ps` adds to 16 × 16 sums in f32 the products of 16 × 32 and 32 × 16 values in bf16. Stable Rust has no
//! functions for it, but its assembler knows the instructions.

use std::arch::asm;
use std::fmt::Debug;
use std::sync::LazyLock;

/// Rows of a tile.
pub const TILE: usize = 16;

/// Values in bf16 of a row of a tile: those of the inner dimension that one instruction multiplies.
pub const DEPTH: usize = 32;

/// Rows and columns of the sums that are worked on at a time: two tiles each way, so that every tile that is loaded is used
/// twice.
pub const BLOCK: usize = 2 * TILE;

/// A row of a tile: values in bf16, by their bits.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u16; DEPTH]);

/// Rows of tiles that a [`BLOCK`] by [`DEPTH`] takes: two tiles, one after the other.
pub const LINES: usize = 2 * TILE;

/// That this machine has AMX with bf16, and the vectors that go with it, and that the operating system lets this process
/// use them.
#[derive(Debug, Clone, Copy)]
pub struct Amx(());

impl Amx {
    /// Asks once; later calls give the same answer.
    pub fn get() -> Option<Self> {
        static FOUND: LazyLock<bool> = LazyLock::new(|| has_instructions() && permitted());
        FOUND.then_some(Self(()))
    }

    /// Does `work` with the tiles of this thread set up. It must not do another of its kind inside.
    #[inline]
    pub fn with_tiles<R>(self, work: impl FnOnce(&Tiles) -> R) -> R {
        let tiles = Tiles::set_up(self);
        work(&tiles)
    }
}

/// Whether the processor has AMX with bf16, and AVX-512 with bf16, which prepares its tiles.
fn has_instructions() -> bool {
    use std::arch::x86_64::__cpuid_count;
    // CPUID, leaf 7: AMX-BF16 and AMX-TILE in EDX. Stable Rust does not ask for these by name.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16");
    vectors && __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
}

/// Asks Linux to let this process use tiles: their 8 KiB are not part of a thread's state before.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that takes numbers and touches no memory of this process; it overwrites rcx and r11.
    #[allow(unsafe_code)]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems permit tiles in other ways.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tiles of this thread, all of 16 × 64 bytes, for as long as this lives. It stays on its thread.
#[derive(Debug)]
pub struct Tiles(std::marker::PhantomData<*const ()>);

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_row: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    fn set_up(_: Amx) -> Self {
        static ALL_WHOLE: Configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_of_a_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        // SAFETY: the machine has the instruction and the system permits it, as the token says; it reads the 64 bytes of
        // a valid configuration.
        #[allow(unsafe_code)]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &ALL_WHOLE, options(nostack, readonly));
        }
        Self(std::marker::PhantomData)
    }

    /// `sums ← left · right`, or added to them, of [`BLOCK`] × [`BLOCK`] sums with rows `stride` values apart. Each sum is
    /// taken in the order of the inner dimension; numbers below 2⁻¹²⁶ count as zero.
    ///
    /// `left` and `right` have [`LINES`] for each [`DEPTH`] of the inner dimension: of the left matrix two tiles of 16 rows,
    /// of the right one two tiles of 16 columns, each line of which holds two rows, value by value in turn.
    ///
    /// # Safety
    ///
    /// `sums` must be valid for writes of the rows, and for reads where the product is added.
    ///
    /// # Panics
    ///
    /// When the operands have no lines, or not equally many.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub unsafe fn multiply(
        &self,
        left: &[Line],
        right: &[Line],
        add: bool,
        sums: *mut f32,
        stride: usize,
    ) {
        let depths = left.len() / LINES;
        assert!(
            left.len() == right.len() && left.len() == depths * LINES && depths > 0,
            "{} lines by {}",
            left.len(),
            right.len()
        );
        // SAFETY: the tiles are set up, as `self` says; the operands have the lines that are read, as was asserted; the
        // sums are the caller's promise. No stack is used, and nothing but the registers named is changed.
        unsafe {
            asm!(
                "test {add:e}, {add:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{upper} + {stride}]",
                "tileloadd tmm1, [{upper} + {stride} + 64]",
                "tileloadd tmm2, [{lower} + {stride}]",
                "tileloadd tmm3, [{lower} + {stride} + 64]",
                "3:",
                "tileloadd tmm6, [{right} + {line}]",
                "tileloadd tmm4, [{left} + {line}]",
                "tileloadd tmm7, [{right} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{left} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 2048",
                "add {right}, 2048",
                "dec {depths}",
                "jnz 3b",
                "tilestored [{upper} + {stride}], tmm0",
                "tilestored [{upper} + {stride} + 64], tmm1",
                "tilestored [{lower} + {stride}], tmm2",
                "tilestored [{lower} + {stride} + 64], tmm3",
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                depths = inout(reg) depths => _,
                upper = in(reg) sums,
                lower = in(reg) sums.wrapping_add(TILE * stride),
                stride = in(reg) stride * size_of::<f32>(),
                line = in(reg) size_of::<Line>(),
                add = in(reg) u32::from(add),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives back what `set_up` took.
        #[allow(unsafe_code)]
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}
