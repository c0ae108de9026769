//! Which blocks of a cache are free, and how many sequences hold each of the others.

/// Blocks by number, each with the number of sequences that hold it.
#[derive(Debug, Clone)]
pub struct BlockPool {
    holders: Vec<u32>,
    free: usize,
}

impl BlockPool {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.holders.len()
    }

    /// Number of blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.free
    }

    /// Free blocks, so many.
    pub fn new(blocks: usize) -> Self {
        Self {
            holders: vec![0; blocks],
            free: blocks,
        }
    }

    /// Adds free blocks until there are so many, and lays the blocks of each sequence side by side again, with as many free
    /// ones behind it as behind any other. Returns for each block which one it was; for those that are free, any.
    ///
    /// # Panics
    ///
    /// When there are more already.
    pub fn grow(&mut self, blocks: usize, sequences: &mut [Vec<usize>]) -> Vec<usize> {
        self.free += blocks - self.blocks();
        let taking = sequences.iter().filter(|blocks| !blocks.is_empty());
        let behind_each = self.free / taking.count().max(1);
        let before = std::mem::replace(&mut self.holders, vec![0; blocks]);
        let mut places = vec![None; before.len()];
        let mut sources = vec![0; blocks];
        let mut next = 0;
        for sequence in sequences {
            let start = next;
            for block in sequence {
                // A block that several hold lies where the first of them is.
                let place = *places[*block].get_or_insert_with(|| {
                    next += 1;
                    next - 1
                });
                sources[place] = *block;
                self.holders[place] = before[*block];
                *block = place;
            }
            if next > start {
                next += behind_each;
            }
        }
        sources
    }

    /// Takes `count` free blocks for a sequence, of which `after` is the last one so far.
    ///
    /// Attention reads neighbours fastest, so they come right behind each other as far as they can. Where that ends, they
    /// continue in the widest gap, in the middle of what they leave of it: so does the sequence in front of them, which
    /// grows too.
    ///
    /// # Panics
    ///
    /// When fewer are free.
    pub fn take(&mut self, count: usize, after: Option<usize>) -> Vec<usize> {
        assert!(count <= self.free, "{count} of {} free blocks", self.free);
        let mut taken = Vec::with_capacity(count);
        let mut next = after.map(|block| block + 1);
        while taken.len() < count {
            let block = next
                .filter(|&block| self.holders.get(block) == Some(&0))
                .unwrap_or_else(|| self.start(count - taken.len()));
            self.holders[block] = 1;
            self.free -= 1;
            taken.push(block);
            next = Some(block + 1);
        }
        taken
    }

    /// Where `count` blocks begin in the widest gap.
    fn start(&self, count: usize) -> usize {
        let mut widest = 0..0;
        let mut start = 0;
        for gap in self.holders.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            if gap[0] == 0 && gap.len() > widest.len() {
                widest = start..start + gap.len();
            }
            start += gap.len();
        }
        match widest.start {
            // Nothing is in front.
            0 => 0,
            start => start + widest.len().saturating_sub(count) / 2,
        }
    }

    /// One more sequence holds a block.
    pub fn share(&mut self, block: usize) {
        self.holders[block] += 1;
    }

    /// Number of sequences that hold a block.
    pub fn holders(&self, block: usize) -> usize {
        self.holders[block] as usize
    }

    /// One sequence less holds a block, which is free where that was the last.
    pub fn give_back(&mut self, block: usize) {
        self.holders[block] -= 1;
        self.free += usize::from(self.holders[block] == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_grow_keep_their_blocks_together() {
        let mut pool = BlockPool::new(32);
        let mut sequences: Vec<Vec<usize>> = (0..4).map(|_| pool.take(2, None)).collect();
        let starts: Vec<usize> = sequences.iter().map(|blocks| blocks[0]).collect();
        assert_eq!(starts, [0, 16, 8, 24]);
        for _ in 0..6 {
            for blocks in &mut sequences {
                let more = pool.take(1, blocks.last().copied());
                blocks.extend(more);
            }
        }
        for blocks in &sequences {
            assert!(blocks.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        }
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn a_block_is_free_when_its_last_holder_gives_it_back() {
        let mut pool = BlockPool::new(3);
        assert_eq!(pool.take(2, None), [0, 1]);
        pool.share(1);
        assert_eq!([0, 1, 2].map(|block| pool.holders(block)), [1, 2, 0]);
        pool.give_back(1);
        assert_eq!(pool.holders(1), 1);
        assert_eq!(pool.free(), 1);
        pool.give_back(1);
        assert_eq!(pool.free(), 2);
        // Where nothing is side by side any more.
        assert_eq!(pool.take(2, Some(0)), [1, 2]);
        pool.give_back(0);
        pool.give_back(2);
        assert_eq!(pool.take(2, Some(1)), [2, 0]);
    }

    #[test]
    fn sequences_lie_side_by_side_again_when_the_pool_grows() {
        let mut pool = BlockPool::new(6);
        let mut sequences = vec![pool.take(2, None), Vec::new(), pool.take(1, None)];
        // They collide, and the last one begins as the first.
        for _ in 0..3 {
            let more = pool.take(1, sequences[2].last().copied());
            sequences[2].extend(more);
        }
        pool.share(sequences[0][0]);
        sequences.push(vec![sequences[0][0]]);
        let before = sequences.clone();
        let sources = pool.grow(12, &mut sequences);
        assert_eq!(sequences, [vec![0, 1], vec![], vec![4, 5, 6, 7], vec![0]]);
        for (blocks, before) in sequences.iter().zip(&before) {
            let from: Vec<usize> = blocks.iter().map(|&block| sources[block]).collect();
            assert_eq!(&from, before);
        }
        assert_eq!((pool.blocks(), pool.free()), (12, 6));
        assert_eq!([0, 1, 2, 4].map(|block| pool.holders(block)), [2, 1, 0, 1]);
    }

    #[test]
    #[should_panic(expected = "2 of 1 free blocks")]
    fn no_more_are_taken_than_are_free() {
        BlockPool::new(1).take(2, None);
    }
}
