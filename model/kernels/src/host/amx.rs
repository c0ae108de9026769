//! Products of tiles on a CPU with AMX: a unit with eight registers of 16 × 64 bytes (Intel SDM, volume 1, chapter 18).
//!
//! `tdpbf16ps` adds to 16 × 16 sums in f32 the products of 16 × 32 and 32 × 16 values in bf16. Stable Rust has no
//! functions for it, but its assembler knows the instructions.

use std::arch::asm;
use std::fmt::Debug;
use std::sync::LazyLock;

use super::avx512::Avx512Bf16;
use super::gemm::Accumulate;
use super::panels::block::{BLOCK, Line, Multiplier, TILE, Target, depths};

/// That this machine has AMX with bf16, and the vectors that go with it, and that the operating system lets this process
/// use them.
#[derive(Debug, Clone, Copy)]
pub struct Amx(Avx512Bf16);

impl Amx {
    /// Asks once; later calls give the same answer.
    pub fn get() -> Option<Self> {
        static FOUND: LazyLock<bool> = LazyLock::new(|| has_instructions() && permitted());
        Avx512Bf16::get().filter(|_| *FOUND).map(Self)
    }

    /// The vectors that prepare tiles.
    pub fn vectors(self) -> Avx512Bf16 {
        self.0
    }

    /// Does `work` with the tiles of this thread set up. It must not do another of its kind inside.
    #[inline]
    pub fn with_tiles<R>(self, work: impl FnOnce(&Tiles) -> R) -> R {
        let tiles = Tiles::set_up(self);
        work(&tiles)
    }
}

/// Whether the processor has AMX with bf16.
fn has_instructions() -> bool {
    use std::arch::x86_64::__cpuid_count;
    // CPUID, leaf 7: AMX-BF16 and AMX-TILE in EDX. Stable Rust does not ask for these by name.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // Every x86-64 processor with AVX-512 has leaf 7.
    Avx512Bf16::get().is_some()
        && __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
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

    /// `sums ← left · right`, or added to them, of [`BLOCK`] × [`BLOCK`] sums with rows `stride` values apart; else as
    /// [`Multiplier::multiply`].
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
    unsafe fn multiply_whole(
        &self,
        left: &[Line],
        right: &[Line],
        add: bool,
        sums: *mut f32,
        stride: usize,
    ) {
        let depths = depths(left, right);
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

impl Multiplier for Tiles {
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply(&self, left: &[Line], right: &[Line], into: Accumulate, target: &Target) {
        let add = into == Accumulate::Add;
        if target.rows == BLOCK && target.columns == BLOCK {
            // SAFETY: the caller's promise.
            unsafe { self.multiply_whole(left, right, add, target.first, target.stride) };
            return;
        }
        let mut sums = Sums([[0.0; BLOCK]; BLOCK]);
        // SAFETY: the target is the caller's promise; of the sums, a whole block of values is there, with rows of its own
        // width.
        unsafe {
            if add {
                sums.copy_from(target);
            }
            let first = sums.0.as_flattened_mut().as_mut_ptr();
            self.multiply_whole(left, right, true, first, BLOCK);
            sums.copy_to(target);
        }
    }
}

/// A block of sums outside of an output.
#[repr(C, align(64))]
struct Sums([[f32; BLOCK]; BLOCK]);

impl Sums {
    /// # Safety
    ///
    /// The values must be there.
    #[allow(unsafe_code)]
    unsafe fn copy_from(&mut self, target: &Target) {
        for (row, sums) in self.0.iter_mut().enumerate().take(target.rows) {
            for (column, sum) in sums.iter_mut().enumerate().take(target.columns) {
                // SAFETY: the caller's promise.
                *sum = unsafe { target.first.add(row * target.stride + column).read() };
            }
        }
    }

    /// # Safety
    ///
    /// The values must be there to be written.
    #[allow(unsafe_code)]
    unsafe fn copy_to(&self, target: &Target) {
        for (row, sums) in self.0.iter().enumerate().take(target.rows) {
            for (column, sum) in sums.iter().enumerate().take(target.columns) {
                // SAFETY: the caller's promise.
                unsafe { target.first.add(row * target.stride + column).write(*sum) };
            }
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
